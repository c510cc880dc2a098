//! Carries plans out.

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use serde_json::{Value, json};

use crate::error::Error;
use crate::plan::{Change, Note, Plan, Target};

const FIELD_MANAGER: &str = "ebb-controller";
/// The longest action that Kubernetes takes for an event.
const ACTION: usize = 128;

/// Writes to the API server.
#[derive(Clone)]
pub(crate) struct Executor {
    client: Client,
    recorder: Recorder,
}

impl Executor {
    pub(crate) fn new(client: Client) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Carries out `plan`, which is about `object`.
    pub(crate) async fn run<K>(&self, object: &K, plan: Plan) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()>,
    {
        let name = object.meta().name.clone().unwrap_or_default();
        let me = Target::of::<K>(object.meta().namespace.clone(), name);
        for change in &plan.first {
            self.change(change).await?;
        }
        let status = async {
            match &plan.status {
                Some(status) => self.status(&me, status).await,
                None => Ok(()),
            }
        };
        let changes = try_join_all(plan.then.iter().map(|change| self.change(change)));
        // The status does not wait for the changes: each write costs the API server a sync to disk.
        let (changes, status) = tokio::join!(changes, status);
        if !plan.notes.is_empty() {
            let reference = object.object_ref(&());
            let (this, notes) = (self.clone(), plan.notes);
            tokio::spawn(async move { this.tell(&reference, notes).await });
        }
        changes?;
        status
    }

    /// Tells of a warning about `object`.
    pub(crate) fn warn<K>(&self, object: &K, reason: &'static str, message: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let (this, reference) = (self.clone(), object.object_ref(&()));
        tokio::spawn(
            async move { this.tell(&reference, vec![Note { warning: true, reason, message }]).await },
        );
    }

    fn api(&self, target: &Target) -> Api<DynamicObject> {
        match &target.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &target.resource),
            None => Api::all_with(self.client.clone(), &target.resource),
        }
    }

    async fn change(&self, change: &Change) -> Result<(), Error> {
        let (verb, target, result) = match change {
            Change::Create(target, body) => {
                let object: DynamicObject = serde_json::from_value(body.clone()).map_err(Error::Json)?;
                let params =
                    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
                ("create", target, self.api(target).create(&params, &object).await.map(drop))
            }
            Change::Patch(target, patch) => {
                let params =
                    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
                let patched = self.api(target).patch(&target.name, &params, &Patch::Merge(patch)).await;
                ("change", target, patched.map(drop))
            }
            Change::Delete(target, uid) => {
                let mut params = DeleteParams::background();
                params.preconditions =
                    uid.clone().map(|uid| Preconditions { uid: Some(uid), resource_version: None });
                ("delete", target, self.api(target).delete(&target.name, &params).await.map(drop))
            }
        };
        match result {
            Ok(()) => {
                tracing::debug!(verb, kind = %target.resource.kind, name = %target.name, "done");
                Ok(())
            }
            // It came, or went, before we knew: its event brings us back.
            Err(kube::Error::Api(status))
                if matches!(change, Change::Create(..)) && status.reason == "AlreadyExists" =>
            {
                Ok(())
            }
            Err(kube::Error::Api(status))
                if matches!(change, Change::Delete(..)) && matches!(status.code, 404 | 409) =>
            {
                Ok(())
            }
            Err(source) => {
                let object = format!("{} {}", target.resource.kind, target.name);
                Err(Error::Write { verb, object, source: Box::new(source) })
            }
        }
    }

    async fn status(&self, me: &Target, status: &Value) -> Result<(), Error> {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"status": status}));
        match self.api(me).patch_status(&me.name, &params, &patch).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => {
                let object = format!("the status of {} {}", me.resource.kind, me.name);
                Err(Error::Write { verb: "change", object, source: Box::new(source) })
            }
        }
    }

    async fn tell(&self, reference: &ObjectReference, notes: Vec<Note>) {
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason.into(),
                // The recorder counts what differs in its message alone as the same again: what was done tells them apart.
                action: note.message.chars().take(ACTION).collect(),
                note: Some(note.message),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, reference).await {
                tracing::debug!(%error, "an event could not be written");
            }
        }
    }
}
