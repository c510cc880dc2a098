//! What annotations and labels mean: the first spelling of each is the one to write.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::root;

type Row = (&'static [&'static str], &'static str, &'static str);

const TEMPLATE: &[Row] = &[
    (
        &["autoscaling.knative.dev/class"],
        "`kpa.autoscaling.knative.dev`",
        "Who decides about the number of pods: that class, or `hpa.autoscaling.knative.dev`.",
    ),
    (
        &["autoscaling.knative.dev/metric"],
        "`concurrency`",
        "What is counted: `concurrency` or `rps`; for the class hpa also `cpu`, `memory` or a metric of your own.",
    ),
    (
        &["autoscaling.knative.dev/target"],
        "containerConcurrency, else 100; for rps 200",
        "What one pod should carry; at least 0.01.",
    ),
    (
        &[
            "autoscaling.knative.dev/target-utilization-percentage",
            "autoscaling.knative.dev/targetUtilizationPercentage",
        ],
        "70",
        "The share of the target that is aimed at; 1 to 100.",
    ),
    (&["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"], "0", "The fewest pods."),
    (
        &["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"],
        "0",
        "The most pods; 0: no bound.",
    ),
    (
        &["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"],
        "1",
        "Pods before the revision is first Ready; 0 only where config-autoscaler allows it.",
    ),
    (
        &["autoscaling.knative.dev/activation-scale"],
        "none",
        "The smallest number of pods that is not zero; at least 2.",
    ),
    (&["autoscaling.knative.dev/window"], "60s", "Over how long load is averaged; 6s to 1h, whole seconds."),
    (
        &["autoscaling.knative.dev/panic-window-percentage", "autoscaling.knative.dev/panicWindowPercentage"],
        "10",
        "The panic window as a share of the window; 1 to 100.",
    ),
    (
        &[
            "autoscaling.knative.dev/panic-threshold-percentage",
            "autoscaling.knative.dev/panicThresholdPercentage",
        ],
        "200",
        "The load, as a share of what the pods carry, from which on nothing shrinks and the panic window decides; 110 to 1000.",
    ),
    (
        &["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"],
        "0s",
        "How long less load is watched before pods go; 0s to 1h, whole seconds.",
    ),
    (
        &[
            "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
            "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
        ],
        "0s",
        "How long the last pod is kept at least; 0s to 1h.",
    ),
    (
        &["autoscaling.knative.dev/target-burst-capacity", "autoscaling.knative.dev/targetBurstCapacity"],
        "211",
        "Spare capacity below which the activator stays in the path; -1: always, 0: only at zero.",
    ),
    (
        &[
            "autoscaling.knative.dev/metric-aggregation-algorithm",
            "autoscaling.knative.dev/metricAggregationAlgorithm",
        ],
        "`linear`",
        "How samples are averaged: `linear` or `weighted-exponential`.",
    ),
    (
        &["serving.knative.dev/progress-deadline"],
        "600s",
        "How long a revision may make no progress before it has failed; whole seconds.",
    ),
    (&["queue.sidecar.serving.knative.dev/cpu-resource-request"], "25m", "What the sidecar requests."),
    (&["queue.sidecar.serving.knative.dev/cpu-resource-limit"], "none", "The sidecar's limit."),
    (&["queue.sidecar.serving.knative.dev/memory-resource-request"], "none", "What the sidecar requests."),
    (&["queue.sidecar.serving.knative.dev/memory-resource-limit"], "none", "The sidecar's limit."),
    (
        &["queue.sidecar.serving.knative.dev/ephemeral-storage-resource-request"],
        "none",
        "What the sidecar requests.",
    ),
    (&["queue.sidecar.serving.knative.dev/ephemeral-storage-resource-limit"], "none", "The sidecar's limit."),
    (
        &[
            "queue.sidecar.serving.knative.dev/resource-percentage",
            "queue.sidecar.serving.knative.dev/resourcePercentage",
        ],
        "none",
        "The sidecar's share of the app's resources; 0.1 to 100. Deprecated: set the resources themselves.",
    ),
    (
        &["features.knative.dev/http-full-duplex"],
        "disabled",
        "HTTP/1 requests and responses may overlap, whatever it says; in Knative only with `enabled`.",
    ),
    (
        &["mesh.ebb.dev/mtls"],
        "as the namespace's label, then config-network",
        "Whether the pods take mutual TLS only, `strict`, or plaintext, too, `permissive`.",
    ),
    (
        &["features.knative.dev/queueproxy-podinfo"],
        "",
        "Shows the sidecar the annotations of its pod, where `queueproxy.mount-podinfo` is allowed.",
    ),
];

const OBJECT: &[Row] = &[
    (
        &["serving.knative.dev/rollout-duration", "serving.knative.dev/rolloutDuration"],
        "0s",
        "On a Service or Route: how long traffic takes to move to a new latest revision; whole seconds.",
    ),
    (&["serving.knative.dev/no-gc"], "none", "On a Revision: `true` keeps it from garbage collection."),
    (
        &["features.knative.dev/podspec-dryrun"],
        "none",
        "On a Service or Configuration: `enabled` or `strict` tries the pod against Kubernetes whenever it is applied. A dry run (`kubectl apply --dry-run=server`) does so without it.",
    ),
    (
        &["networking.knative.dev/ingress.class", "networking.knative.dev/ingress-class"],
        "as config-network",
        "On a Service, Route or DomainMapping: which gateway serves it.",
    ),
    (
        &["networking.knative.dev/certificate.class", "networking.knative.dev/certificate-class"],
        "as config-network",
        "Likewise: who makes its certificates.",
    ),
    (
        &[
            "networking.knative.dev/disable-external-domain-tls",
            "networking.knative.dev/disableAutoTLS",
            "networking.knative.dev/disable-auto-tls",
        ],
        "`false`",
        "Likewise: `true` goes without certificates for external hosts.",
    ),
    (
        &["networking.knative.dev/http-protocol", "networking.knative.dev/httpOption"],
        "as config-network",
        "Likewise: what plain HTTP gets at hosts with TLS, `enabled` (it is served) or `redirected`.",
    ),
];

const LABELS: &[Row] = &[
    (
        &["networking.knative.dev/visibility"],
        "none",
        "On a Service, Route or the Kubernetes Service of a tag: `cluster-local` keeps it inside the cluster.",
    ),
    (
        &["mesh.ebb.dev/mtls"],
        "none",
        "On a Namespace: `strict` or `permissive` for all revisions in it that do not say themselves.",
    ),
];

const WRITTEN: &[Row] = &[
    (&["serving.knative.dev/creator"], "", "Annotation: who made an object; never changes."),
    (&["serving.knative.dev/lastModifier"], "", "Annotation: who changed its spec last."),
    (&["serving.knative.dev/service"], "", "Label: the Service of an object."),
    (&["serving.knative.dev/serviceUID"], "", "Label: that Service's uid."),
    (&["serving.knative.dev/configuration"], "", "Label: the Configuration of a Revision and its children."),
    (&["serving.knative.dev/configurationUID"], "", "Label: that Configuration's uid."),
    (
        &["serving.knative.dev/configurationGeneration"],
        "",
        "Label: the generation of the Configuration that stamped a Revision.",
    ),
    (&["serving.knative.dev/revision"], "", "Label: the Revision of pods, Deployments and the like."),
    (&["serving.knative.dev/revisionUID"], "", "Label: that Revision's uid."),
    (&["serving.knative.dev/route"], "", "Label: the Route of an Ingress or of a Kubernetes Service."),
    (&["serving.knative.dev/routeNamespace"], "", "Label: that Route's namespace."),
    (&["serving.knative.dev/routes"], "", "Annotation: the Routes that lead to a Revision."),
    (
        &["serving.knative.dev/routingState"],
        "",
        "Label: whether a Revision gets traffic: `pending`, `active` or `reserve`.",
    ),
    (&["serving.knative.dev/routingStateModified"], "", "Annotation: since when."),
    (&["serving.knative.dev/domainMappingUID"], "", "Label: the DomainMapping of an Ingress."),
    (&["serving.knative.dev/domainMappingNamespace"], "", "Label: that DomainMapping's namespace."),
    (&["networking.internal.knative.dev/rollout"], "", "Annotation: the state of a gradual rollout."),
    (
        &["networking.internal.knative.dev/tag-to-host"],
        "",
        "Annotation: the hosts of each tag of an Ingress, as JSON.",
    ),
    (
        &["networking.internal.knative.dev/certificate-uid"],
        "",
        "Label: the Certificate that a Secret was made for.",
    ),
    (
        &["networking.knative.dev/certificate-type"],
        "",
        "Label: for what kind of host a Certificate is: `external-domain` or `cluster-local-domain`.",
    ),
    (
        &["networking.knative.dev/wildcardDomain"],
        "",
        "Label: the domain whose wildcard a Certificate has, in its namespace.",
    ),
    (
        &["networking.internal.knative.dev/serverlessservice"],
        "",
        "Label: the ServerlessService of a Kubernetes Service.",
    ),
    (
        &["networking.internal.knative.dev/serviceType"],
        "",
        "Label: whether that is the `Public` or the `Private` one.",
    ),
];

const SECTIONS: &[(&str, &[Row])] = &[
    ("Annotations of a revision's template", TEMPLATE),
    ("Annotations of objects", OBJECT),
    ("Labels", LABELS),
    ("What the platform writes", WRITTEN),
];

/// The page.
pub(crate) fn annotations() -> String {
    let mut text = String::from(
        "# Annotations and labels\n\nThose of a revision belong under `spec.template.metadata.annotations`; defaults are those of the ConfigMaps as \
         installed. Older spellings, given in brackets, are understood as well.\n",
    );
    for (title, rows) in SECTIONS {
        let defaults = rows.iter().any(|(_, default, _)| !default.is_empty());
        let head = if defaults { "| key | default | |\n|---|---|---|" } else { "| key | |\n|---|---|" };
        write!(text, "\n## {title}\n\n{head}\n").expect("text");
        for (keys, default, meaning) in *rows {
            let older: Vec<_> = keys[1..].iter().map(|key| format!("`{key}`")).collect();
            let older = if older.is_empty() { String::new() } else { format!(" ({})", older.join(", ")) };
            let default = if defaults { format!(" {default} |") } else { String::new() };
            writeln!(text, "| `{}`{older} |{default} {meaning} |", keys[0]).expect("text");
        }
    }
    text
}

/// Every key that the code has a name for.
#[test]
fn every_key_is_told() {
    let source = std::fs::read_to_string(root().join("api/src/meta.rs")).expect("the source");
    let keys: BTreeSet<&str> = source
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.contains(".dev/") && !text.ends_with('/'))
        .collect();
    let told: BTreeSet<&str> =
        SECTIONS.iter().flat_map(|(_, rows)| *rows).flat_map(|(keys, ..)| *keys).copied().collect();
    assert!(keys.len() > 50, "{keys:?}");
    assert_eq!(keys.difference(&told).collect::<Vec<_>>(), Vec::<&&str>::new(), "not told");
    assert_eq!(told.difference(&keys).collect::<Vec<_>>(), Vec::<&&str>::new(), "told and not known");
}
