//! What can be wrong with a Deployment, in plain words and with what to do about it.

use crate::model::{Cure, Trouble, TroubleKind};

/// A trouble of a Deployment; `detail` is the API server's reason and message.
pub(super) fn trouble(kind: TroubleKind, detail: String) -> Trouble {
    let (what, cure) = words(kind);
    Trouble { kind, what, detail, cure: Cure(cure) }
}

fn words(kind: TroubleKind) -> (&'static str, &'static str) {
    match kind {
        TroubleKind::CrashLoop => {
            ("it crashes again and again", "read its log on the platform: it is that of the run that crashed")
        }
        TroubleKind::OutOfMemory => (
            "it was ended for using more memory than its limit",
            "raise resources.limits.memory in P__DAEMON__KUBERNETES__IMAGE_RESOURCES",
        ),
        TroubleKind::ImagePull => (
            "its image cannot be pulled",
            "see that the image exists and that P__DAEMON__REGISTRY__* or P__DAEMON__KUBERNETES__IMAGE_PULL_SECRETS has a login where one is needed",
        ),
        TroubleKind::Settings => {
            ("its pod refers to something that is not there", "create what is missing; the base deployment may name it")
        }
        TroubleKind::WontStart => {
            ("the node cannot start its container", "see that the image and the base deployment fit this node")
        }
        TroubleKind::Unschedulable => {
            ("no node can take it", "add nodes, or mend requests, nodeSelector and tolerations of the base deployment")
        }
        TroubleKind::Evicted => ("a node evicted it", "free memory or disk on that node, or set resource requests"),
        TroubleKind::NotAdmitted => {
            ("its pod may not be created", "raise the quota, or mend the base deployment as the policy asks")
        }
        TroubleKind::Stuck => (
            "its pod does not get on",
            "look at its events (kubectl describe pod); of a node that is gone, kubectl delete pod --force",
        ),
        TroubleKind::Paused => (
            "the rollout of its Deployment is paused, so that changes do not reach it",
            "resume it: kubectl rollout resume deployment",
        ),
        TroubleKind::Drifted => (
            "its Deployment was changed by somebody else",
            "nothing has to be done: it is put right when this connector changes next",
        ),
    }
}
