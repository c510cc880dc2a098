//! Routes in all their forms: without a Service, with tags, in small steps, hidden, under names of the user's own, by TLS.
//!
//! Cases under `ALONE` change settings of the platform, and put them back; no other case runs meanwhile.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testkit::http;
use testkit::run;

use crate::Case;
use crate::harness::{Namespace, Platform, host_of, service_manifest};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("routing::route_and_configuration_without_a_service", without_a_service),
    ("routing::tags_have_urls_of_their_own", tags),
    ("routing::rollout_duration_is_seen_moving", rollout),
    ("routing::a_label_on_a_placeholder_hides_a_tag", hidden_tag),
    ("routing::a_domain_belongs_to_who_claimed_it", claimed_domain),
];

pub(crate) const ALONE: &[(&str, Case)] =
    &[("routing::tag_header", tag_header), ("routing::tls_by_the_platforms_authority", tls)];

/// Settings of a ConfigMap of the platform, for as long as this lives.
struct Settings<'a> {
    platform: &'a Platform,
    map: &'static str,
    keys: Vec<&'static str>,
}

impl<'a> Settings<'a> {
    fn set(platform: &'a Platform, map: &'static str, data: &[(&'static str, &str)]) -> Result<Self> {
        let keys = data.iter().map(|(key, _)| *key).collect();
        let patch = json!({"data": data.iter().copied().collect::<std::collections::BTreeMap<_, _>>()});
        let set = Self { platform, map, keys };
        set.patch(&patch)?;
        Ok(set)
    }

    fn patch(&self, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        let args = ["patch", "configmap", self.map, "-n", "ebb-system", "--type=merge", "-p", &patch];
        self.platform.kubectl(&args).map(drop)
    }
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        let gone: serde_json::Map<String, Value> =
            self.keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
        if let Err(error) = self.patch(&json!({"data": gone})) {
            eprintln!("{} could not be put back: {error:#}", self.map);
        }
    }
}

/// A Service with two revisions that say "one" and "two", of which `traffic` gets what.
fn two_revisions(p: &Platform, ns: &Namespace<'_>, name: &str, traffic: &Value) -> Result<()> {
    ns.service(name, &[], &[("NAME", "one")])?;
    ns.wait_ready(name)?;
    let mut manifest = service_manifest(name, p.image(), &[], &[("NAME", "two")]);
    manifest["spec"]["traffic"] = traffic.clone();
    p.apply(ns.name(), &manifest.to_string())?;
    settled(p, ns, &format!("ksvc/{name}")).map(drop)
}

/// Waits until an object's status is about its present spec, and Ready.
fn settled(p: &Platform, ns: &Namespace<'_>, what: &str) -> Result<Value> {
    let mut last = Value::Null;
    ns.wait(&format!("{what} is Ready"), || {
        last = p.get(ns.name(), what)?;
        Ok(last["status"]["observedGeneration"] == last["metadata"]["generation"]
            && says(&last, "Ready").0 == "True")
    })
    .with_context(|| format!("conditions: {}", last["status"]["conditions"]))?;
    Ok(last)
}

/// Status and reason of a condition.
fn says(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|c| c["type"] == kind));
    let text = |key: &str| found.and_then(|c| c[key].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// What a host answers.
fn ask(p: &Platform, host: &str, headers: &[(&str, &str)]) -> Result<String> {
    let answer = http::get_with(p.gateway(), host, "/", headers)?;
    ensure!(answer.status == 200, "{host} answered {answer:?}");
    Ok(answer.body.trim().to_owned())
}

fn url(object: &Value) -> Result<&str> {
    object["status"]["url"].as_str().context("status.url is missing")
}

fn without_a_service(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-bare")?;
    let route = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "bare"},
        "spec": {"traffic": [{"configurationName": "made", "percent": 100, "latestRevision": true}]}
    });
    p.apply(ns.name(), &route.to_string())?;
    ns.wait("the Route says what is missing", || {
        let said = says(&p.get(ns.name(), "routes.serving.knative.dev/bare")?, "AllTrafficAssigned");
        Ok(said == ("False".to_owned(), "ConfigurationMissing".to_owned()))
    })?;
    let mut configuration = service_manifest("made", p.image(), &[], &[("NAME", "bare")]);
    configuration["kind"] = json!("Configuration");
    p.apply(ns.name(), &configuration.to_string())?;
    let found = settled(p, &ns, "routes.serving.knative.dev/bare")?;
    ensure!(ask(p, &host_of(url(&found)?)?, &[])? == "bare", "another app answers");
    let made = p.get(ns.name(), "revision/made-00001")?;
    let state = &made["metadata"]["labels"]["serving.knative.dev/routingState"];
    ensure!(state == "active", "{state}");
    let routes = &made["metadata"]["annotations"]["serving.knative.dev/routes"];
    ensure!(routes == "bare", "{routes}");
    // Without its Route a revision is held in reserve, and its host is nobody's.
    p.kubectl(&["delete", "routes.serving.knative.dev/bare", "-n", ns.name()])?;
    ns.wait("the revision is held in reserve", || {
        let made = p.get(ns.name(), "revision/made-00001")?;
        Ok(made["metadata"]["labels"]["serving.knative.dev/routingState"] == "reserve")
    })
}

fn tags(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-tags")?;
    let traffic = json!([
        {"revisionName": "shop-00001", "percent": 100, "tag": "current"},
        {"latestRevision": true, "percent": 0, "tag": "next"},
        {"revisionName": "shop-00001", "percent": 0, "tag": "same"}
    ]);
    two_revisions(p, &ns, "shop", &traffic)?;
    let object = p.get(ns.name(), "ksvc/shop")?;
    ensure!(ask(p, &host_of(url(&object)?)?, &[])? == "one", "the share of 0 was served");
    for (tag, want) in [("current", "one"), ("next", "two"), ("same", "one")] {
        let all = object["status"]["traffic"].as_array().context("no traffic in the status")?;
        let target =
            all.iter().find(|t| t["tag"] == tag).with_context(|| format!("no tag {tag} in {all:?}"))?;
        let host = host_of(target["url"].as_str().context("a tag without a URL")?)?;
        ensure!(host.starts_with(&format!("{tag}-shop.e2e-tags.")), "{host}");
        ensure!(ask(p, &host, &[])? == want, "{tag} leads elsewhere");
    }
    Ok(())
}

fn rollout(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-rollout")?;
    let manifest = |name: &str| {
        let mut manifest = service_manifest("slow", p.image(), &[], &[("NAME", name)]);
        manifest["metadata"]["annotations"] = json!({"serving.knative.dev/rollout-duration": "12s"});
        manifest.to_string()
    };
    p.apply(ns.name(), &manifest("one"))?;
    ns.wait_ready("slow")?;
    p.apply(ns.name(), &manifest("two"))?;
    let mut seen: Vec<i64> = Vec::new();
    ns.wait("all traffic has moved", || {
        let object = p.get(ns.name(), "ksvc/slow")?;
        let traffic = object["status"]["traffic"].as_array().cloned().unwrap_or_default();
        let share =
            traffic.iter().find(|t| t["revisionName"] == "slow-00002").and_then(|t| t["percent"].as_i64());
        if let Some(share) = share.filter(|share| seen.last() != Some(share)) {
            ensure!(seen.last().is_none_or(|before| *before < share), "it went back: {seen:?}, {share}");
            if share < 100 {
                let said = says(&object, "RoutesReady");
                ensure!(said == ("Unknown".into(), "RolloutInProgress".into()), "{said:?} at {share} %");
            }
            seen.push(share);
        }
        Ok(share == Some(100) && says(&object, "Ready").0 == "True")
    })?;
    // In 12 s there is time for a look every 100 ms: at the very least the first step, one in the middle and the end are seen.
    ensure!(seen.len() >= 3 && seen[0] < 50, "steps: {seen:?}");
    ensure!(ask(p, &ns.host("slow")?, &[])? == "two", "the old revision answers after the end");
    let events = p.kubectl(&["get", "events", "-n", ns.name(), "-o", "jsonpath={.items[*].reason}"])?;
    for reason in ["RolloutStarted", "RolloutFinished"] {
        ensure!(events.contains(reason), "no event {reason} among {events}");
    }
    Ok(())
}

fn hidden_tag(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-hidden")?;
    let mut manifest = service_manifest("seen", p.image(), &[], &[]);
    manifest["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100, "tag": "inner"}]);
    p.apply(ns.name(), &manifest.to_string())?;
    ns.wait_ready("seen")?;
    p.kubectl(&[
        "label",
        "service/inner-seen",
        "-n",
        ns.name(),
        "networking.knative.dev/visibility=cluster-local",
    ])?;
    ns.wait("the tag's URL is inside the cluster", || {
        let object = p.get(ns.name(), "ksvc/seen")?;
        Ok(object["status"]["traffic"][0]["url"] == "http://inner-seen.e2e-hidden.svc.cluster.local")
    })?;
    settled(p, &ns, "ksvc/seen")?;
    let host = ns.host("seen")?;
    ask(p, &host, &[])?;
    let answer = http::get(p.gateway(), &format!("inner-{host}"), "/")?;
    ensure!(answer.status == 404, "a hidden tag is served to the outside: {answer:?}");
    Ok(())
}

fn claim(domain: &str, namespace: &str) -> String {
    json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ClusterDomainClaim",
        "metadata": {"name": domain}, "spec": {"namespace": namespace}
    })
    .to_string()
}

fn mapping(domain: &str, service: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping", "metadata": {"name": domain},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": service}}
    })
}

fn claimed_domain(p: &Platform) -> Result<()> {
    const DOMAIN: &str = "shop.e2e.example";
    let (ns, other) = (p.namespace("e2e-mapped")?, p.namespace("e2e-mapped-other")?);
    let result = (|| {
        p.apply("default", &claim(DOMAIN, other.name()))?;
        ns.service("shop", &[], &[])?;
        ns.wait_ready("shop")?;
        p.apply(ns.name(), &mapping(DOMAIN, "shop").to_string())?;
        let what = format!("domainmapping/{DOMAIN}");
        ns.wait("the claim of another namespace is respected", || {
            let said = says(&p.get(ns.name(), &what)?, "DomainClaimed");
            Ok(said == ("False".to_owned(), "DomainAlreadyClaimed".to_owned()))
        })?;
        ensure!(http::get(p.gateway(), DOMAIN, "/")?.status == 404, "it is served all the same");
        p.kubectl(&["delete", "clusterdomainclaim", DOMAIN])?;
        p.apply("default", &claim(DOMAIN, ns.name()))?;
        settled(p, &ns, &what)?;
        let answer = http::get(p.gateway(), DOMAIN, "/echo")?;
        ensure!(answer.status == 200, "{answer:?}");
        let head = answer.body.to_ascii_lowercase();
        ensure!(
            head.contains(&format!("host: {DOMAIN}\r\n")) || head.contains(&format!("host: {DOMAIN}\n")),
            "the app sees another host: {head}"
        );
        p.kubectl(&["delete", &what, "-n", ns.name()])?;
        ns.wait("the host is nobody's", || Ok(http::get(p.gateway(), DOMAIN, "/")?.status == 404))?;
        // The administrator's claim stays.
        p.kubectl(&["get", "clusterdomainclaim", DOMAIN]).map(drop)
    })();
    let _ = p.kubectl(&["delete", "clusterdomainclaim", DOMAIN, "--ignore-not-found"]);
    result
}

fn tag_header(p: &Platform) -> Result<()> {
    let _settings = Settings::set(p, "config-features", &[("tag-header-based-routing", "enabled")])?;
    let ns = p.namespace("e2e-tag-header")?;
    let traffic = json!([
        {"revisionName": "shop-00001", "percent": 100},
        {"latestRevision": true, "percent": 0, "tag": "next"}
    ]);
    two_revisions(p, &ns, "shop", &traffic)?;
    let host = ns.host("shop")?;
    for (tag, want) in [(None, "one"), (Some("next"), "two"), (Some("nobody"), "one")] {
        let headers: Vec<_> = tag.map(|tag| ("Knative-Serving-Tag", tag)).into_iter().collect();
        let got = ask(p, &host, &headers)?;
        ensure!(got == want, "tag {tag:?} got {got}");
    }
    Ok(())
}

/// curl, as a user runs it: the code and the body. All hosts are at the gateway, whatever DNS says.
fn curl(p: &Platform, args: &[&str]) -> Result<(String, String)> {
    let mut command = Command::new("curl");
    let to = format!("::{}", p.tls_gateway()?);
    command.args(["-sS", "--max-time", "30", "-w", "\n%{http_code} %{redirect_url}", "--connect-to", &to]);
    let out = run(
        {
            command.args(args);
            command
        },
        None,
    )?;
    let (body, code) = out.trim_end_matches('\n').rsplit_once('\n').context("curl said nothing")?;
    Ok((code.trim().to_owned(), body.to_owned()))
}

fn tls(p: &Platform) -> Result<()> {
    const DOMAIN: &str = "secure.e2e.example";
    let network = [("external-domain-tls", "enabled"), ("autocreate-cluster-domain-claims", "true")];
    let _settings = Settings::set(p, "config-network", &network)?;
    let ns = p.namespace("e2e-tls")?;
    ns.service("shop", &[], &[("NAME", "by TLS")])?;
    ns.wait("the Service's URL is https", || {
        let object = p.get(ns.name(), "ksvc/shop")?;
        Ok(object["status"]["url"].as_str().is_some_and(|url| url.starts_with("https://")))
    })?;
    let object = settled(p, &ns, "ksvc/shop")?;
    // The root that users are told to trust.
    let root = tempfile::NamedTempFile::new()?;
    let template = "go-template={{index .data \"ca.crt\" | base64decode}}";
    std::fs::write(
        root.path(),
        p.kubectl(&["get", "secret", "ebb-domain-ca", "-n", "ebb-system", "-o", template])?,
    )?;
    let trusted = root.path().display().to_string();
    let (code, body) = curl(p, &["--cacert", &trusted, url(&object)?])?;
    ensure!(code == "200" && body.trim() == "by TLS", "{code}: {body}");
    if curl(p, &[url(&object)?]).is_ok() {
        bail!("a client that does not trust the root was served");
    }

    let mut manifest = mapping(DOMAIN, "shop");
    manifest["metadata"]["annotations"] = json!({"networking.knative.dev/http-protocol": "Redirected"});
    p.apply(ns.name(), &manifest.to_string())?;
    let what = format!("domainmapping/{DOMAIN}");
    ns.wait("the mapping's URL is https", || {
        let object = p.get(ns.name(), &what)?;
        Ok(object["status"]["url"].as_str().is_some_and(|url| url.starts_with("https://")))
    })?;
    let object = settled(p, &ns, &what)?;
    let secure = url(&object)?.to_owned();
    let (code, body) = curl(p, &["--cacert", &trusted, &format!("{secure}/echo")])?;
    ensure!(
        code == "200" && body.to_ascii_lowercase().contains(&format!("host: {DOMAIN}")),
        "{code}: {body}"
    );
    // Plain HTTP is sent to where TLS is.
    let answer = http::get(p.gateway(), DOMAIN, "/some?thing=1")?;
    let location = answer.headers.get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
    ensure!(
        answer.status == 301 && location == format!("{secure}/some?thing=1"),
        "{} {location}",
        answer.status
    );

    // The claim was made for the mapping, and goes with it.
    p.kubectl(&["get", "clusterdomainclaim", DOMAIN])?;
    p.kubectl(&["delete", &what, "-n", ns.name()])?;
    ns.wait("the claim is gone", || {
        Ok(p.kubectl(&["get", "clusterdomainclaim", DOMAIN, "--ignore-not-found", "-o", "name"])?.is_empty())
    })
}
