//! `autoscaling.internal.knative.dev`: what the controller asks of the autoscaler.

mod metric;
mod pod_autoscaler;

pub use metric::{Metric, MetricSpec, MetricStatus};
pub use pod_autoscaler::{PodAutoscaler, PodAutoscalerSpec, PodAutoscalerStatus, Reachability};

/// The API group of all kinds here.
pub const GROUP: &str = "autoscaling.internal.knative.dev";
