//! log, exec, attach and portforward: handed to the node agent in this process.
//!
//! The request goes on as it came, upgrade included: hyper keeps the pending upgrade in the request's extensions, so the
//! node agent talks to the client directly and nothing is copied in between.

use axum::body::Body;
use http::{Request, Uri};
use serde_json::Value;
use tower::ServiceExt;
use url::form_urlencoded::Serializer;

use super::{Ctx, read};
use crate::error::ApiError;
use crate::reply::Reply;

/// Parameters of a log, apart from the container.
const LOG: [&str; 8] =
    ["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "previous", "limitBytes", "stream"];
/// Parameters of exec and attach, apart from the container.
const EXEC: [&str; 5] = ["command", "stdin", "stdout", "stderr", "tty"];
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().into_iter().flatten();
    containers.filter_map(|container| container["name"].as_str()).map(str::to_owned).collect()
}

/// The container meant: the one asked for, the annotated one, or the only one.
fn container(pod: &Value, asked: Option<&str>) -> Result<String, ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let (own, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    match asked {
        Some(asked) => {
            if !own.iter().chain(&init).chain(&ephemeral).any(|known| known == asked) {
                return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")));
            }
            Ok(asked.to_owned())
        }
        None if own.len() == 1 => Ok(own[0].clone()),
        None => {
            if let Some(annotated) = annotated.filter(|annotated| own.iter().any(|known| known == annotated))
            {
                return Ok(annotated.to_owned());
            }
            let mut message = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                own.join(" ")
            );
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

/// Sends the request to the node agent.
pub(crate) async fn handle(ctx: &Ctx, mut request: Request<Body>) -> Result<Reply, ApiError> {
    let pod = read::find(ctx)?;
    let name = &pod.key.name;
    if ctx.sub == "log" && request.method() != http::Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    if pod.value["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        // A log of nothing is empty; there is nothing to attach to.
        if ctx.sub == "log" {
            container(&pod.value, ctx.query.get("container"))?;
            return Ok(crate::reply::bytes(http::StatusCode::OK, "text/plain", ""));
        }
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let kubelet = ctx.server.kubelet.load_full();
    let Some(kubelet) = kubelet else {
        return Err(ApiError::unavailable("no node agent is connected to this server"));
    };
    let query = query(ctx);
    let namespace = &ctx.namespace;
    let base = match ctx.sub.as_str() {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        sub => {
            let container = container(&pod.value, ctx.query.get("container"))?;
            let verb = if sub == "log" { "containerLogs" } else { sub };
            format!("/{verb}/{namespace}/{name}/{container}")
        }
    };
    let uri = if query.is_empty() { base } else { format!("{base}?{query}") };
    *request.uri_mut() = uri.parse::<Uri>().map_err(ApiError::internal)?;
    let router = axum::Router::clone(&kubelet);
    match router.oneshot(request).await {
        Ok(reply) => Ok(reply),
        Err(never) => match never {},
    }
}

/// The parameters that the node agent knows.
fn query(ctx: &Ctx) -> String {
    let mut query = Serializer::new(String::new());
    let keys: &[&str] = match ctx.sub.as_str() {
        "log" => &LOG,
        "portforward" => &["ports"],
        _ => &EXEC,
    };
    for key in keys {
        for value in ctx.query.all(key) {
            query.append_pair(key, value);
        }
    }
    query.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_is_chosen_as_upstream_does() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}],
            "ephemeralContainers": [{"name": "e"}]}});
        assert_eq!(container(&one, None).unwrap(), "a");
        assert_eq!(container(&one, Some("i")).unwrap(), "i");
        assert_eq!(container(&one, Some("e")).unwrap(), "e");
        let mut two =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            container(&two, None).unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        two["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(container(&two, None).unwrap(), "b");
        assert_eq!(container(&two, Some("c")).unwrap_err().message, "container c is not valid for pod p");
    }
}
