//! What becomes of requests when a part of the platform goes away: components killed or replaced, the API server restarted, an upgrade.
//!
//! A component is killed by SIGKILL of its containers, and replaced by `kubectl rollout restart`. All cases look at the same scene: requests that go on
//! at a warm Service, one at a Service at zero while the part is away, and afterwards a new Service.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::http::{self, Load, Tally};

use crate::Case;
use crate::given::Given;
use crate::harness::{Namespace, Platform};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("component::controller_killed_loses_nothing", |p| killed(p, "controller")),
    ("component::autoscaler_killed_loses_nothing", |p| killed(p, "autoscaler")),
    ("component::activator_killed_loses_what_was_in_flight", activator_killed),
    ("component::gateway_killed_loses_what_was_in_flight", gateway_killed),
    ("component::controller_replaced_loses_nothing", |p| replaced(p, "controller")),
    ("component::autoscaler_replaced_loses_nothing", |p| replaced(p, "autoscaler")),
    ("component::activator_replaced_loses_nothing", |p| replaced(p, "activator")),
    ("component::gateway_replaced_loses_nothing", |p| replaced(p, "gateway")),
    ("component::api_server_restarted_loses_nothing", api_server_restarted),
    ("component::upgrade_loses_nothing", upgrade),
];

const SYSTEM: &str = "ebb-system";
/// The container that keeps the gateway's listening sockets.
const KEEPER: &str = "listener-keeper";
const LANES: usize = 4;

/// A warm Service under load, and one at zero.
struct Scene<'a> {
    platform: &'a Platform,
    ns: Namespace<'a>,
    load: Load,
    cold: String,
}

impl<'a> Scene<'a> {
    fn set(platform: &'a Platform, name: &str) -> Result<Self> {
        let ns = platform.namespace(&format!("e2e-{name}"))?;
        let short = [("autoscaling.knative.dev/window", "6s")];
        ns.service("cold", &short, &[("NAME", "woken")])?;
        ns.wait_ready("cold")?;
        let cold = ns.host("cold")?;
        ns.wait_zero()?;
        ns.service("warm", &short, &[("NAME", "warm")])?;
        ns.wait_ready("warm")?;
        let warm = ns.host("warm")?;
        let first = http::get(platform.gateway(), &warm, "/")?;
        ensure!(first.status == 200, "before anything was done: {first:?}");
        let load = Load::start(platform.gateway(), &warm, LANES, http::by_body);
        Ok(Self { platform, ns, load, cold })
    }

    /// The Service at zero answers, however long it takes.
    fn wakes(&self) -> Result<()> {
        let answer = http::get(self.platform.gateway(), &self.cold, "/")?;
        ensure!(answer.status == 200 && answer.body == "woken\n", "the cold Service: {answer:?}");
        Ok(())
    }

    /// A new Service still comes to be, then the load ends: what it met besides answers of the app.
    fn end(self) -> Result<Tally> {
        self.ns.service("new", &[], &[("NAME", "new")])?;
        self.ns.wait_ready("new")?;
        let answer = http::get(self.platform.gateway(), &self.ns.host("new")?, "/")?;
        ensure!(answer.status == 200 && answer.body == "new\n", "the new Service: {answer:?}");
        let slowest = self.load.slowest();
        let mut tally = self.load.stop();
        let served = tally.remove("200 warm").unwrap_or(0);
        ensure!(served > 0, "the load got no answer at all: {tally:?}");
        println!("{served} answers, the slowest after {} ms, otherwise {tally:?}", slowest.as_millis());
        Ok(tally)
    }
}

fn given(p: &Platform) -> Result<&Given> {
    p.as_given().context("this case needs a platform whose components are pods")
}

fn pods(p: &Platform, component: &str) -> Result<Vec<Value>> {
    let label = format!("app.kubernetes.io/component={component}");
    let list: Value =
        serde_json::from_str(&p.kubectl(&["get", "pods", "-n", SYSTEM, "-l", &label, "-o", "json"])?)?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    // One that is on its way out finishes what it has; it is nobody's component any more.
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    ensure!(!pods.is_empty(), "component {component} has no pod");
    Ok(pods)
}

/// A container of each of the component's pods, as their status tells of it.
fn containers(p: &Platform, component: &str, container: &str) -> Result<Vec<Value>> {
    let all = pods(p, component)?.into_iter().map(|pod| {
        let of = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let found = of.into_iter().find(|status| status["name"] == container);
        found.with_context(|| format!("a pod of {component} tells nothing of its container {container}"))
    });
    all.collect()
}

/// Ends so many of the component's containers by SIGKILL.
fn kill(p: &Platform, component: &str, count: usize) -> Result<()> {
    for status in containers(p, component, component)?.iter().take(count) {
        kill_one(p, status)?;
    }
    Ok(())
}

fn kill_one(p: &Platform, status: &Value) -> Result<()> {
    let id = status["containerID"].as_str().context("the pod has no running container")?;
    given(p)?.kill_container(id)
}

/// Waits until the kubelet has started a killed component again, and those can reach it that ask by its Service: they learn of it later than the
/// pod's status tells.
fn back(p: &Platform, scene: &Scene<'_>, component: &str, restarts: u64) -> Result<()> {
    scene.ns.wait("the component is back", || {
        let ready = containers(p, component, component)?.iter().all(|status| status["ready"] == true);
        Ok(ready && self::restarts(p, component)? >= restarts)
    })?;
    if component == "controller" {
        scene.ns.wait("the API server reaches the webhooks", || Ok(scene.ns.dry_run("asked").is_ok()))?;
    }
    Ok(())
}

fn restarts(p: &Platform, component: &str) -> Result<u64> {
    let all = containers(p, component, component)?;
    Ok(all.iter().filter_map(|status| status["restartCount"].as_u64()).sum())
}

/// Controller and autoscaler: no request passes through them, so none may be lost, all replicas killed at once.
fn killed(p: &Platform, component: &str) -> Result<()> {
    let scene = Scene::set(p, &format!("killed-{component}"))?;
    let (before, count) = (restarts(p, component)?, pods(p, component)?.len());
    kill(p, component, count)?;
    scene.wakes()?;
    back(p, &scene, component, before + count as u64)?;
    let lost = scene.end()?;
    ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}

/// One activator is killed while it holds and forwards requests; those are lost at most, and no others.
fn activator_killed(p: &Platform) -> Result<()> {
    let scene = Scene::set(p, "killed-activator")?;
    let before = restarts(p, "activator")?;
    let held = Load::start(p.gateway(), &scene.cold, LANES, http::by_body);
    // Whichever has been reached by then: held for a pod, forwarded, or answered.
    std::thread::sleep(Duration::from_millis(300));
    kill(p, "activator", 1)?;
    back(p, &scene, "activator", before + 1)?;
    let mut held = held.stop();
    let served = held.remove("200 woken").unwrap_or(0);
    let lost: usize = held.values().sum();
    ensure!(served > 0 && lost <= LANES, "{served} answers, more lost than were in flight: {held:?}");
    scene.ns.wait_zero_of("cold")?;
    scene.wakes()?;
    let lost = scene.end()?;
    // With few pods the activator is on the way of a warm Service too, to hold what a burst is too much for them.
    ensure!(lost.values().sum::<usize>() <= LANES, "the warm Service lost more than was in flight: {lost:?}");
    Ok(())
}

/// One gateway is killed. What it had in flight is lost at most; who comes while it is away waits for it, refused is nobody.
fn gateway_killed(p: &Platform) -> Result<()> {
    let scene = Scene::set(p, "killed-gateway")?;
    // The one that keeps its sockets, first: the next must have been given them.
    let keeper = || Ok::<_, anyhow::Error>(containers(p, "gateway", KEEPER)?.swap_remove(0));
    let (before, first) = (restarts(p, "gateway")?, keeper()?);
    kill_one(p, &first)?;
    scene.ns.wait("the keeper is back", || {
        let now = keeper()?;
        Ok(now["restartCount"] != first["restartCount"] && now["ready"] == true)
    })?;
    kill(p, "gateway", 1)?;
    back(p, &scene, "gateway", before + 1)?;
    scene.wakes()?;
    let lost = scene.end()?;
    let refused = lost.keys().any(|error| error.contains("refused"));
    let count: usize = lost.values().sum();
    ensure!(!refused && count <= LANES, "more lost than were in flight: {lost:?}");
    Ok(())
}

/// A graceful stop of each pod in turn, as an upgrade of nodes does it.
fn replaced(p: &Platform, component: &str) -> Result<()> {
    let scene = Scene::set(p, &format!("replaced-{component}"))?;
    let deployment = format!("deployment/{component}");
    p.kubectl(&["rollout", "restart", "-n", SYSTEM, &deployment])?;
    scene.wakes()?;
    p.kubectl(&["rollout", "status", "-n", SYSTEM, &deployment, "--timeout=120s"])?;
    let label = format!("app.kubernetes.io/component={component}");
    let wanted = pods(p, component)?.len();
    scene.ns.wait("the old pods are gone", || {
        let all = p.kubectl(&["get", "pods", "-n", SYSTEM, "-l", &label, "-o", "name"])?;
        Ok(all.lines().count() == wanted)
    })?;
    let lost = scene.end()?;
    ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}

fn api_server_restarted(p: &Platform) -> Result<()> {
    let scene = Scene::set(p, "api-server")?;
    given(p)?.restart_api_server()?;
    scene.wakes()?;
    scene.ns.wait("the API server answers", || Ok(p.kubectl(&["get", "--raw", "/readyz"]).is_ok()))?;
    let lost = scene.end()?;
    ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}

/// A newer build is installed over the running one: same code under another tag, so every pod of the platform and every sidecar is replaced.
fn upgrade(p: &Platform) -> Result<()> {
    let scene = Scene::set(p, "upgrade")?;
    let tag = format!("e2e-{}", std::process::id());
    let given = given(p)?;
    given.load(|file| ["image", "export", &file, "--image-tag", &tag].map(String::from).to_vec())?;
    given.ebb(&["install", "--image-tag", &tag].map(String::from))?;
    scene.wakes()?;
    for component in ["controller", "autoscaler", "activator", "gateway"] {
        p.kubectl(&[
            "rollout",
            "status",
            "-n",
            SYSTEM,
            &format!("deployment/{component}"),
            "--timeout=120s",
        ])?;
        let image = pods(p, component)?[0]["spec"]["containers"][0]["image"].to_string();
        ensure!(image.contains(&tag), "{component} still runs {image}");
    }
    scene.ns.wait("the warm Service has the new sidecar, and only that", || {
        let label = "serving.knative.dev/service=warm";
        let pods = p.kubectl(&["get", "pods", "-n", scene.ns.name(), "-l", label, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods)?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(!pods.is_empty() && pods.iter().all(|pod| pod["spec"]["containers"].to_string().contains(&tag)))
    })?;
    let lost = scene.end()?;
    ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}
