//! Names of labels, annotations and the values that they may have, as Knative spells them.
//!
//! Some annotations have more than one spelling; such a key is a [`Keys`], whose first spelling is the one written.

use std::collections::BTreeMap;

/// The spellings of one annotation, the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys(pub &'static [&'static str]);

impl Keys {
    /// The preferred spelling.
    #[must_use]
    pub fn key(self) -> &'static str {
        self.0[0]
    }

    /// The spelling used and the value, by preference.
    #[must_use]
    pub fn get(self, annotations: Option<&BTreeMap<String, String>>) -> Option<(&'static str, &str)> {
        let annotations = annotations?;
        self.0.iter().find_map(|k| annotations.get(*k).map(|v| (*k, v.as_str())))
    }

    /// The value, by preference.
    #[must_use]
    pub fn value(self, annotations: Option<&BTreeMap<String, String>>) -> Option<&str> {
        self.get(annotations).map(|(_, v)| v)
    }
}

/// `serving.knative.dev/*` and relatives.
pub mod serving {
    use super::Keys;

    /// The prefix of every key here.
    pub const PREFIX: &str = "serving.knative.dev/";
    /// Label: the Configuration of a Revision and of its children.
    pub const CONFIGURATION: &str = "serving.knative.dev/configuration";
    /// Label: the Configuration's uid.
    pub const CONFIGURATION_UID: &str = "serving.knative.dev/configurationUID";
    /// Label: the Configuration's generation that stamped a Revision.
    pub const CONFIGURATION_GENERATION: &str = "serving.knative.dev/configurationGeneration";
    /// Label: the Revision of a child.
    pub const REVISION: &str = "serving.knative.dev/revision";
    /// Label: the Revision's uid.
    pub const REVISION_UID: &str = "serving.knative.dev/revisionUID";
    /// Label: the Service.
    pub const SERVICE: &str = "serving.knative.dev/service";
    /// Label: the Service's uid.
    pub const SERVICE_UID: &str = "serving.knative.dev/serviceUID";
    /// Label: the Route of an Ingress or placeholder Service.
    pub const ROUTE: &str = "serving.knative.dev/route";
    /// Label: that Route's namespace.
    pub const ROUTE_NAMESPACE: &str = "serving.knative.dev/routeNamespace";
    /// Annotation: the Routes that lead to a Revision or Configuration, comma-separated.
    pub const ROUTES: &str = "serving.knative.dev/routes";
    /// Label: whether a Revision gets traffic: pending, active or reserve.
    pub const ROUTING_STATE: &str = "serving.knative.dev/routingState";
    /// Annotation: when the routing state last changed, RFC 3339.
    pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
    /// Annotation: keeps a Revision from garbage collection.
    pub const NO_GC: &str = "serving.knative.dev/no-gc";
    /// Annotation: who made the object.
    pub const CREATOR: &str = "serving.knative.dev/creator";
    /// Annotation: who last changed the object's spec.
    pub const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";
    /// Label: the DomainMapping of an Ingress.
    pub const DOMAIN_MAPPING_UID: &str = "serving.knative.dev/domainMappingUID";
    /// Label: that DomainMapping's namespace.
    pub const DOMAIN_MAPPING_NAMESPACE: &str = "serving.knative.dev/domainMappingNamespace";
    /// Annotation: makes the API server check the pod spec that a Service would give.
    pub const PODSPEC_DRYRUN: &str = "features.knative.dev/podspec-dryrun";
    /// Annotation: how long traffic takes to move to a new latest revision.
    pub const ROLLOUT_DURATION: Keys =
        Keys(&["serving.knative.dev/rollout-duration", "serving.knative.dev/rolloutDuration"]);
    /// Annotation: how long a revision may take to come up.
    pub const PROGRESS_DEADLINE: Keys = Keys(&["serving.knative.dev/progress-deadline"]);
    /// Annotation: the sidecar's share of the app's resources.
    pub const QUEUE_RESOURCE_PERCENTAGE: Keys = Keys(&[
        "queue.sidecar.serving.knative.dev/resource-percentage",
        "queue.sidecar.serving.knative.dev/resourcePercentage",
    ]);
    /// Annotation: the sidecar's CPU request.
    pub const QUEUE_CPU_REQUEST: Keys = Keys(&["queue.sidecar.serving.knative.dev/cpu-resource-request"]);
    /// Annotation: the sidecar's CPU limit.
    pub const QUEUE_CPU_LIMIT: Keys = Keys(&["queue.sidecar.serving.knative.dev/cpu-resource-limit"]);
    /// Annotation: the sidecar's memory request.
    pub const QUEUE_MEMORY_REQUEST: Keys =
        Keys(&["queue.sidecar.serving.knative.dev/memory-resource-request"]);
    /// Annotation: the sidecar's memory limit.
    pub const QUEUE_MEMORY_LIMIT: Keys = Keys(&["queue.sidecar.serving.knative.dev/memory-resource-limit"]);
    /// Annotation: the sidecar's ephemeral storage request.
    pub const QUEUE_EPHEMERAL_STORAGE_REQUEST: Keys =
        Keys(&["queue.sidecar.serving.knative.dev/ephemeral-storage-resource-request"]);
    /// Annotation: the sidecar's ephemeral storage limit.
    pub const QUEUE_EPHEMERAL_STORAGE_LIMIT: Keys =
        Keys(&["queue.sidecar.serving.knative.dev/ephemeral-storage-resource-limit"]);
    /// Annotation: shows the sidecar the annotations of its pod, where the feature is allowed.
    pub const QUEUE_POD_INFO: &str = "features.knative.dev/queueproxy-podinfo";
    /// Annotation: Knative's, to let HTTP/1 requests and responses overlap. Here they always may.
    pub const HTTP_FULL_DUPLEX: &str = "features.knative.dev/http-full-duplex";

    /// Values of [`ROUTING_STATE`].
    pub mod routing_state {
        /// New; no Route has been seen to lead to it yet.
        pub const PENDING: &str = "pending";
        /// A Route leads to it.
        pub const ACTIVE: &str = "active";
        /// No Route leads to it.
        pub const RESERVE: &str = "reserve";
    }
}

/// `networking.knative.dev/*` and relatives.
pub mod networking {
    use super::Keys;

    /// The prefix of the public keys.
    pub const PREFIX: &str = "networking.knative.dev/";
    /// Annotation: which gateway serves an Ingress.
    pub const INGRESS_CLASS: Keys =
        Keys(&["networking.knative.dev/ingress.class", "networking.knative.dev/ingress-class"]);
    /// Annotation: who makes a Certificate.
    pub const CERTIFICATE_CLASS: Keys =
        Keys(&["networking.knative.dev/certificate.class", "networking.knative.dev/certificate-class"]);
    /// Annotation: switches certificates for external hosts off.
    pub const DISABLE_EXTERNAL_DOMAIN_TLS: Keys = Keys(&[
        "networking.knative.dev/disable-external-domain-tls",
        "networking.knative.dev/disableAutoTLS",
        "networking.knative.dev/disable-auto-tls",
    ]);
    /// Annotation: what plain HTTP gets: Enabled or Redirected.
    pub const HTTP_PROTOCOL: Keys =
        Keys(&["networking.knative.dev/http-protocol", "networking.knative.dev/httpOption"]);
    /// Label: cluster-local keeps a Route inside the cluster.
    pub const VISIBILITY: &str = "networking.knative.dev/visibility";
    /// The value of [`VISIBILITY`].
    pub const CLUSTER_LOCAL: &str = "cluster-local";
    /// Label: whether a Service is Public or Private, on the children of a ServerlessService.
    pub const SERVICE_TYPE: &str = "networking.internal.knative.dev/serviceType";
    /// Label: the ServerlessService of a child.
    pub const SKS: &str = "networking.internal.knative.dev/serverlessservice";
    /// Label: of what kind of host a Certificate is: external-domain or cluster-local-domain.
    pub const CERTIFICATE_TYPE: &str = "networking.knative.dev/certificate-type";
    /// The value of [`CERTIFICATE_TYPE`] for hosts that are served to the outside.
    pub const EXTERNAL_DOMAIN: &str = "external-domain";
    /// Label: the domain that a Certificate has the wildcard of, in its namespace.
    pub const WILDCARD_DOMAIN: &str = "networking.knative.dev/wildcardDomain";
    /// Label: the Certificate that a Secret was made for.
    pub const CERTIFICATE_UID: &str = "networking.internal.knative.dev/certificate-uid";
    /// The class of Certificates that ebb signs itself, with an authority of its own.
    pub const EBB_CERTIFICATE_CLASS: &str = "ebb.certificate.networking.knative.dev";
    /// The class of Certificates that cert-manager makes.
    pub const CERT_MANAGER_CLASS: &str = "cert-manager.certificate.networking.knative.dev";
    /// Annotation: the state of a gradual rollout.
    pub const ROLLOUT: &str = "networking.internal.knative.dev/rollout";
    /// Annotation: the hosts of each tag of an Ingress, as JSON.
    pub const TAG_TO_HOST: &str = "networking.internal.knative.dev/tag-to-host";
    /// The class of Ingress that ebb's gateway serves.
    pub const EBB_INGRESS_CLASS: &str = "ebb.ingress.networking.knative.dev";
}

/// `autoscaling.knative.dev/*`.
pub mod autoscaling {
    use super::Keys;

    /// The prefix of every key here.
    pub const PREFIX: &str = "autoscaling.knative.dev/";
    /// The default class.
    pub const KPA: &str = "kpa.autoscaling.knative.dev";
    /// The class that leaves scaling to a HorizontalPodAutoscaler.
    pub const HPA: &str = "hpa.autoscaling.knative.dev";
    /// Which autoscaler.
    pub const CLASS: Keys = Keys(&["autoscaling.knative.dev/class"]);
    /// concurrency, rps, cpu, memory or a custom metric.
    pub const METRIC: Keys = Keys(&["autoscaling.knative.dev/metric"]);
    /// The fewest pods.
    pub const MIN_SCALE: Keys =
        Keys(&["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"]);
    /// The most pods.
    pub const MAX_SCALE: Keys =
        Keys(&["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"]);
    /// Pods before the revision is first Ready.
    pub const INITIAL_SCALE: Keys =
        Keys(&["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"]);
    /// The smallest number of pods that is not zero.
    pub const ACTIVATION_SCALE: Keys = Keys(&["autoscaling.knative.dev/activation-scale"]);
    /// How long less load is watched before pods go.
    pub const SCALE_DOWN_DELAY: Keys =
        Keys(&["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"]);
    /// Load that one pod should carry.
    pub const TARGET: Keys = Keys(&["autoscaling.knative.dev/target"]);
    /// How long the last pod is kept.
    pub const SCALE_TO_ZERO_POD_RETENTION: Keys = Keys(&[
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
    ]);
    /// linear or weighted-exponential.
    pub const METRIC_AGGREGATION_ALGORITHM: Keys = Keys(&[
        "autoscaling.knative.dev/metric-aggregation-algorithm",
        "autoscaling.knative.dev/metricAggregationAlgorithm",
    ]);
    /// The stable window.
    pub const WINDOW: Keys = Keys(&["autoscaling.knative.dev/window"]);
    /// The share of the target that is aimed at.
    pub const TARGET_UTILIZATION_PERCENTAGE: Keys = Keys(&[
        "autoscaling.knative.dev/target-utilization-percentage",
        "autoscaling.knative.dev/targetUtilizationPercentage",
    ]);
    /// Spare capacity below which the activator stays in the path.
    pub const TARGET_BURST_CAPACITY: Keys = Keys(&[
        "autoscaling.knative.dev/target-burst-capacity",
        "autoscaling.knative.dev/targetBurstCapacity",
    ]);
    /// The panic window as a share of the stable one.
    pub const PANIC_WINDOW_PERCENTAGE: Keys = Keys(&[
        "autoscaling.knative.dev/panic-window-percentage",
        "autoscaling.knative.dev/panicWindowPercentage",
    ]);
    /// The load, as a share of what the pods carry, that starts panic.
    pub const PANIC_THRESHOLD_PERCENTAGE: Keys = Keys(&[
        "autoscaling.knative.dev/panic-threshold-percentage",
        "autoscaling.knative.dev/panicThresholdPercentage",
    ]);

    /// Every key here, by all its spellings.
    pub const ALL: &[Keys] = &[
        CLASS,
        METRIC,
        MIN_SCALE,
        MAX_SCALE,
        INITIAL_SCALE,
        ACTIVATION_SCALE,
        SCALE_DOWN_DELAY,
        TARGET,
        SCALE_TO_ZERO_POD_RETENTION,
        METRIC_AGGREGATION_ALGORITHM,
        WINDOW,
        TARGET_UTILIZATION_PERCENTAGE,
        TARGET_BURST_CAPACITY,
        PANIC_WINDOW_PERCENTAGE,
        PANIC_THRESHOLD_PERCENTAGE,
    ];
}

/// The platform's own names.
pub mod ebb {
    /// The namespace of the components unless SYSTEM_NAMESPACE says otherwise.
    pub const SYSTEM_NAMESPACE: &str = "ebb-system";
    /// The ConfigMap with the mesh's root certificates, in each namespace with a revision; key `ca.crt`.
    pub const MESH_ROOT: &str = "ebb-mesh-root";
    /// The audience of the tokens with which workloads ask for certificates.
    pub const MESH_AUDIENCE: &str = "ebb-mesh";
    /// The sidecar container's name.
    pub const QUEUE_PROXY: &str = "queue-proxy";
    /// The NetworkPolicy that keeps plaintext from apps, in each namespace with a revision in mode strict.
    pub const MESH_POLICY: &str = "ebb-mesh";
    /// Annotation on templates and label on namespaces, to say whether pods take plaintext: strict or permissive. The platform puts what
    /// is in force as a label on each pod.
    pub const MTLS_MODE: &str = "mesh.ebb.dev/mtls";
}
