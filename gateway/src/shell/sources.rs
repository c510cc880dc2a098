//! The watches: everything that changes reaches the programmer as a message.

use ebb_api::meta::networking::INGRESS_CLASS;
use ebb_api::networking::Ingress;
use ebb_component::watch::{Change, follow};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::gateway_api::{News, watch};
use crate::table::Key;

/// How many watches must have delivered before the first table is served.
pub(crate) const SOURCES: usize = 4;

/// News for the programmer.
pub(crate) enum Message {
    Ingress(Box<Ingress>),
    IngressGone(Key),
    Service(Box<Service>),
    ServiceGone(Key),
    Slice(Box<EndpointSlice>),
    SliceGone(Key),
    Secret(Box<Secret>),
    SecretGone(Key),
    /// All Secrets with certificates were told.
    SecretsSynced,
    /// Of Gateway API.
    GatewayApi(News),
    /// A ConfigMap of the platform's.
    Config(Box<ConfigMap>),
    /// The name of one that is gone.
    ConfigGone(String),
    /// One of the watches has delivered what exists.
    Synced,
}

impl From<News> for Message {
    fn from(news: News) -> Self {
        Message::GatewayApi(news)
    }
}

pub(crate) type Inbox = mpsc::UnboundedReceiver<Message>;

/// Starts the watches of Ingresses, Services, EndpointSlices and the platform's ConfigMaps.
pub(crate) fn spawn(
    tasks: &TaskTracker,
    client: &kube::Client,
    config: &Config,
    shutdown: &CancellationToken,
) -> (mpsc::UnboundedSender<Message>, Inbox) {
    let (sender, inbox) = mpsc::unbounded_channel();
    let all = watcher::Config::default;

    let (to, class) = (sender.clone(), config.class.clone());
    let mut once = Once::default();
    let api: Api<Ingress> = Api::all(client.clone());
    tasks.spawn(follow(api, all(), shutdown.clone(), move |change| {
        let _ = match change {
            Change::Apply(ingress)
                if INGRESS_CLASS.value(ingress.metadata.annotations.as_ref()) == Some(class.as_str()) =>
            {
                to.send(Message::Ingress(Box::new(ingress)))
            }
            // Another gateway's, now.
            Change::Apply(other) => to.send(Message::IngressGone(Key::new(
                other.namespace().unwrap_or_default(),
                other.name_any(),
            ))),
            Change::Gone { namespace, name } => to.send(Message::IngressGone(Key::new(namespace, name))),
            Change::Synced => once.synced(&to),
        };
    }));

    let to = sender.clone();
    let mut once = Once::default();
    let api: Api<Service> = Api::all(client.clone());
    tasks.spawn(follow(api, all(), shutdown.clone(), move |change| {
        let _ = match change {
            Change::Apply(service) => to.send(Message::Service(Box::new(service))),
            Change::Gone { namespace, name } => to.send(Message::ServiceGone(Key::new(namespace, name))),
            Change::Synced => once.synced(&to),
        };
    }));

    let to = sender.clone();
    let mut once = Once::default();
    let api: Api<EndpointSlice> = Api::all(client.clone());
    tasks.spawn(follow(api, all(), shutdown.clone(), move |change| {
        let _ = match change {
            Change::Apply(slice) => to.send(Message::Slice(Box::new(slice))),
            Change::Gone { namespace, name } => to.send(Message::SliceGone(Key::new(namespace, name))),
            Change::Synced => once.synced(&to),
        };
    }));

    tasks.spawn(watch(client.clone(), sender.clone(), shutdown.clone()));

    let to = sender.clone();
    let mut once = Once::default();
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    tasks.spawn(follow(api, all(), shutdown.clone(), move |change| {
        let _ = match change {
            Change::Apply(map) => to.send(Message::Config(Box::new(map))),
            Change::Gone { name, .. } => to.send(Message::ConfigGone(name)),
            Change::Synced => once.synced(&to),
        };
    }));
    (sender, inbox)
}

/// Follows Secrets with certificates; started only when an Ingress names one.
pub(crate) async fn secrets(
    client: kube::Client,
    to: mpsc::UnboundedSender<Message>,
    shutdown: CancellationToken,
) {
    let api: Api<Secret> = Api::all(client);
    let of_tls = watcher::Config::default().fields("type=kubernetes.io/tls");
    follow(api, of_tls, shutdown, move |change| {
        let _ = match change {
            Change::Apply(secret) => to.send(Message::Secret(Box::new(secret))),
            Change::Gone { namespace, name } => to.send(Message::SecretGone(Key::new(namespace, name))),
            Change::Synced => to.send(Message::SecretsSynced),
        };
    })
    .await;
}

/// A watch delivers all again whenever it had to start anew; only the first time counts.
#[derive(Default)]
struct Once(bool);

impl Once {
    fn synced(&mut self, to: &mpsc::UnboundedSender<Message>) -> Result<(), mpsc::error::SendError<Message>> {
        if std::mem::replace(&mut self.0, true) { Ok(()) } else { to.send(Message::Synced) }
    }
}
