//! The processes that the containers of a pod share (`shareProcessNamespace`): held by one that does nothing else, made when the first container
//! asks for it, and anew if it was killed.

use tokio::sync::oneshot::Receiver;

use crate::context::Context;
use crate::runtime::{Exit, Runtime, RuntimeError};

/// What holds them; none for most pods.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    holder: tokio::sync::Mutex<Option<Holder>>,
}

#[derive(Debug)]
struct Holder {
    id: String,
    ended: Receiver<Exit>,
}

impl Shared {
    /// The id of a process that is there.
    pub(crate) async fn held(&self, context: &Context) -> Result<String, RuntimeError> {
        let mut holder = self.holder.lock().await;
        if let Some(Holder { id, ended }) = &mut *holder
            && ended.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty)
        {
            return Ok(id.clone());
        }
        let id = crate::new_id();
        let ended = context.exits.expect(&id);
        if let Err(error) = context.runtime.hold_processes(&id).await {
            context.exits.forget(&id);
            return Err(error);
        }
        *holder = Some(Holder { id: id.clone(), ended });
        Ok(id)
    }

    /// The pod has ended.
    pub(crate) async fn release(&self, runtime: &Runtime) {
        if let Some(holder) = self.holder.lock().await.take() {
            let _ = runtime.remove(&holder.id).await;
        }
    }
}
