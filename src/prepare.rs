//! Makes the specs for the steps that create a workload, and tries the key when it may be a wrong one. Only this stage
//! decrypts, so a pass that changes nothing does no RSA.
//!
//! Decrypting the values of many connectors takes seconds, in which the engine would have nothing to do. So the specs are
//! made while the steps of earlier connectors are carried out, and each step that needs one waits for its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::access::Access;
use crate::desired::{Desired, Rejection};
use crate::key::ManagerKey;
use crate::model::{Connector, ConnectorId, VariableValue};
use crate::plan::Plan;
use crate::platform::envelope::{self, EnvelopeError};
use crate::render::{self, Common, Spec};
use crate::secret::Secret;
use crate::stop::Stop;

/// The specs of a plan, by connector. Each is set once, when it is made.
type Specs = BTreeMap<ConnectorId, OnceLock<Result<Spec, Rejection>>>;

/// The specs that the steps of a plan need, which a [`Preparer`] makes meanwhile. It gives up when this is dropped.
#[derive(Debug)]
pub(crate) struct Prepared {
    specs: Arc<Specs>,
    /// How long it took to make those that are made. Closed when no more will come.
    progress: watch::Receiver<Duration>,
}

/// Makes the specs that a [`Prepared`] gives.
#[derive(Debug)]
pub(crate) struct Preparer {
    specs: Arc<Specs>,
    /// The connectors in the order in which their steps are carried out.
    order: Vec<ConnectorId>,
    progress: watch::Sender<Duration>,
    begun: Instant,
}

/// What a connector's steps find when they need its spec.
#[derive(Debug)]
pub(crate) enum Preparation<'a> {
    /// None of its steps makes a workload.
    NotNeeded,
    Ready(&'a Spec),
    /// Its values cannot be used. None of its steps is carried out.
    Rejected,
    /// The pass had to stop before its values were decrypted.
    GivenUp,
}

/// The results of opening envelopes, by ciphertext, so that equal envelopes are opened once.
type Opened<'a> = HashMap<&'a str, Result<Secret, EnvelopeError>>;

/// Bounds decryption for all lanes of a pass together: at any time each of its cores works on one envelope at most.
#[derive(Debug, Clone)]
pub struct Decryptors(Arc<Free>);

#[derive(Debug)]
struct Free {
    cores: Mutex<usize>,
    freed: Condvar,
    all: usize,
}

impl Decryptors {
    /// Allows as many decryptions at a time as there are cores for this process. A pass that writes leaves one of several
    /// cores to the orchestrator, which works meanwhile.
    #[must_use]
    pub(crate) fn new(access: Access) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let all = match access {
            Access::ReadOnly => cores,
            Access::ReadWrite => (cores - 1).max(1),
        };
        Self(Arc::new(Free { cores: Mutex::new(all), freed: Condvar::new(), all }))
    }

    /// Waits until a core is free and runs `work`.
    fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let Free { cores, freed, .. } = &*self.0;
        let free = cores.lock().unwrap_or_else(PoisonError::into_inner);
        *freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner) -= 1;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        *cores.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The specs of a plan, none of which is made yet, and what makes them.
#[must_use]
pub(crate) fn begin(plan: &Plan) -> (Prepared, Preparer) {
    let makers = plan.steps().filter(|(_, step)| step.makes_workload());
    let mut wanted: BTreeSet<&ConnectorId> = makers.map(|(entry, _)| &entry.connector).collect();
    // The first step of a connector already waits for its spec, be it a removal that comes before all else.
    let theirs = plan.steps().map(|(entry, _)| &entry.connector).filter(|id| wanted.remove(id));
    let order: Vec<ConnectorId> = theirs.cloned().collect();
    let specs: Arc<Specs> = Arc::new(order.iter().map(|id| (id.clone(), OnceLock::new())).collect());
    let (sender, progress) = watch::channel(Duration::ZERO);
    let preparer = Preparer { specs: Arc::clone(&specs), order, progress: sender, begun: Instant::now() };
    (Prepared { specs, progress }, preparer)
}

impl Prepared {
    /// Waits until it is known what the steps of this connector get.
    pub(crate) async fn of(&self, connector: &ConnectorId) -> Preparation<'_> {
        let Some(spec) = self.specs.get(connector) else { return Preparation::NotNeeded };
        // An error says that no more specs come, and this one may be the last that came.
        drop(self.progress.clone().wait_for(|_| spec.get().is_some()).await);
        match spec.get() {
            Some(Ok(spec)) => Preparation::Ready(spec),
            Some(Err(_)) => Preparation::Rejected,
            None => Preparation::GivenUp,
        }
    }

    /// Waits until no more specs come. Returns false when some were not made.
    pub(crate) async fn is_complete(&self) -> bool {
        drop(self.progress.clone().wait_for(|_| false).await);
        self.specs.values().all(|spec| spec.get().is_some())
    }

    /// The connectors whose values cannot be used, as far as it is known by now.
    #[must_use]
    pub(crate) fn rejected(&self) -> BTreeMap<ConnectorId, Rejection> {
        let rejection = |(id, spec): (&ConnectorId, &OnceLock<Result<Spec, Rejection>>)| {
            Some((id.clone(), spec.get()?.as_ref().err()?.clone()))
        };
        self.specs.iter().filter_map(rejection).collect()
    }

    /// The time until the last of the specs was made that are there by now.
    #[must_use]
    pub(crate) fn took(&self) -> Duration {
        *self.progress.borrow()
    }
}

impl Preparer {
    /// Decrypts and renders the connectors, and blocks its thread meanwhile. When the pass has to stop, or nobody wants
    /// the specs any more, connectors that it did not get to have neither a spec nor a rejection.
    pub(crate) fn run(
        self,
        desired: &Desired,
        key: &ManagerKey,
        common: &Common<'_>,
        decryptors: &Decryptors,
        stop: &Stop,
    ) {
        let connectors: Vec<_> = self.order.iter().filter_map(|id| desired.connectors.get(id)).collect();
        let envelopes = envelopes(connectors.iter().copied());
        let mut holders = HashMap::<&str, Vec<&Connector>>::with_capacity(envelopes.len());
        let nothing = Opened::new();
        for connector in connectors {
            self.make(connector, common, &nothing);
            for envelope in sealed(connector) {
                holders.entry(envelope).or_default().push(connector);
            }
        }
        let opened = Mutex::new(Opened::with_capacity(envelopes.len()));
        open_each(key, &envelopes, decryptors, stop, |envelope, clear| {
            let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.insert(envelope, clear);
            for connector in holders.get(envelope).into_iter().flatten() {
                self.make(connector, common, &opened);
            }
            !self.progress.is_closed()
        });
    }

    /// Makes the spec of a connector, provided that all its envelopes are opened.
    fn make(&self, connector: &Connector, common: &Common<'_>, opened: &Opened<'_>) {
        let Some(place) = self.specs.get(&connector.id) else { return };
        if !sealed(connector).all(|envelope| opened.contains_key(envelope)) {
            return;
        }
        let open = |envelope: &str| opened.get(envelope).cloned().unwrap_or(Err(EnvelopeError::Damaged));
        // A connector that holds an envelope twice comes here twice, with the same result.
        if place.set(render::spec(connector, common, open)).is_ok() {
            self.progress.send_replace(self.begun.elapsed());
        }
    }
}

/// What the values that a platform lists show about the manager's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyTrial {
    /// One of them at least was encrypted for it. Others may be left from a former key until they are typed again.
    Opens,
    /// All were encrypted for other keys.
    OpensNone { values: usize },
    /// No value is encrypted, or those that are cannot be read with any key.
    NothingToTry,
}

/// Tries the key on the listed values until it opens one, and blocks its thread meanwhile. `None` when the pass had to
/// stop before that was certain.
pub(crate) fn try_key(desired: &Desired, key: &ManagerKey, decryptors: &Decryptors, stop: &Stop) -> Option<KeyTrial> {
    let envelopes = envelopes(desired.connectors.values());
    let (opens, others) = (AtomicBool::new(false), AtomicUsize::new(0));
    open_each(key, &envelopes, decryptors, stop, |_, opened| {
        match opened.map_or_else(|error| error.was_for_this_key(), |_| Some(true)) {
            Some(true) => opens.store(true, Ordering::Relaxed),
            Some(false) => {
                others.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        !opens.load(Ordering::Relaxed)
    });
    match (opens.into_inner(), others.into_inner()) {
        (true, _) => Some(KeyTrial::Opens),
        (false, _) if stop.cause().is_some() => None,
        (false, 0) => Some(KeyTrial::NothingToTry),
        (false, values) => Some(KeyTrial::OpensNone { values }),
    }
}

/// The envelopes of these connectors in their order, equal ones once.
fn envelopes<'a>(connectors: impl Iterator<Item = &'a Connector>) -> Vec<&'a str> {
    let mut known = HashSet::new();
    connectors.flat_map(sealed).filter(|envelope| known.insert(*envelope)).collect()
}

/// The envelopes of one connector.
fn sealed(connector: &Connector) -> impl Iterator<Item = &str> {
    connector.variables.iter().filter_map(|variable| match &variable.value {
        VariableValue::Encrypted(envelope) => Some(envelope.as_str()),
        VariableValue::Clear(_) => None,
    })
}

/// Opens the envelopes in this order and gives each result to `take`, until that returns false, all are opened, or the
/// pass has to stop. Works on as many at a time as `decryptors` allows.
fn open_each<'a>(
    key: &ManagerKey,
    envelopes: &[&'a str],
    decryptors: &Decryptors,
    stop: &Stop,
    take: impl Fn(&'a str, Result<Secret, EnvelopeError>) -> bool + Sync,
) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(envelope) = envelopes.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.cause().is_some() {
                return;
            }
            let clear = decryptors.run(|| envelope::open(key, envelope));
            if !take(envelope, clear) {
                next.store(envelopes.len(), Ordering::Relaxed);
                return;
            }
        }
    };
    let threads = decryptors.0.all.min(envelopes.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use stand_in_platform::envelope::encrypt_v2;

    use super::*;
    use crate::desired::{self, Listing, WireConnector, WireVariable};
    use crate::memory::Memory;
    use crate::model::{Change, ConfigHash, Handle, ManagerId, Observed, Phase, PlatformKind, Vitals, Workload};
    use crate::plan::{self, LoopAction, Policy, PrunePolicy};
    use crate::probation::ProbationRule;
    use crate::restart_window::LoopRule;

    fn connector(id: &str, key: &ManagerKey) -> WireConnector {
        let value = encrypt_v2(&key.public_pem, "value").expect("an envelope");
        WireConnector {
            id: id.to_owned(),
            name: id.to_owned(),
            image: "image:1".to_owned(),
            hash: "cafe".to_owned(),
            requested: "starting".to_owned(),
            current: None,
            configuration: vec![WireVariable {
                key: "KEY".to_owned(),
                value: Some(Secret::new(value)),
                encrypted: true,
            }],
        }
    }

    fn workload(handle: &str, connector: &str, now: jiff::Timestamp) -> Workload {
        Workload {
            handle: Handle(handle.to_owned()),
            name: handle.to_owned(),
            connector: ConnectorId::new(connector).expect("an id"),
            platform: Some(PlatformKind::OpenCti),
            hash: Some(ConfigHash::new("beef").expect("a hash")),
            phase: Phase::Running,
            created: now,
            vitals: Some(Vitals::default()),
            change: Change::Replaced,
            troubles: vec![],
        }
    }

    #[test]
    fn what_the_first_step_needs_is_decrypted_first_and_nothing_once_nobody_wants_it() {
        let key = ManagerKey::generate(2048).expect("a key");
        let desired = desired::read(Listing {
            connectors: ["a", "b", "z"].map(|id| connector(id, &key)).into(),
            unreadable: vec![],
        });
        let now = jiff::Timestamp::now();
        let observed =
            Observed { workloads: ["z1", "z2"].map(|handle| workload(handle, "z", now)).into(), ..Observed::default() };
        let policy = Policy {
            loop_rule: LoopRule { window_s: 300, limit: 3 },
            loop_action: LoopAction::Report,
            prune: PrunePolicy { allow: false, max_percent: 50 },
            probation: ProbationRule { length_s: 0, after_restart_s: 300 },
            release: None,
        };
        let plan = plan::plan(&desired, &observed, &Memory::default(), &policy, now);
        let removed = plan.steps().next().map(|(entry, step)| (entry.connector.as_str(), step.word()));
        assert_eq!(removed, Some(("z", "remove")), "one workload too many goes before all else");

        let manager = ManagerId::new("manager").expect("an id");
        let common =
            Common { manager: &manager, platform: PlatformKind::OpenCti, url: "http://x", proxy: None, registry: None };
        let stop = Stop::after(Duration::from_mins(1), Duration::from_secs(1));
        let decryptors = Decryptors(Arc::new(Free { cores: Mutex::new(1), freed: Condvar::new(), all: 1 }));
        let (prepared, preparer) = begin(&plan);
        let specs = Arc::clone(&prepared.specs);
        thread::scope(|scope| {
            // The only core is taken until nobody wants the specs any more.
            let (taken, is_taken) = mpsc::channel();
            let (free, is_free) = mpsc::channel::<()>();
            let decryptors = &decryptors;
            scope.spawn(move || {
                decryptors.run(|| {
                    taken.send(()).unwrap();
                    is_free.recv().unwrap();
                });
            });
            is_taken.recv().unwrap();
            scope.spawn(|| preparer.run(&desired, &key, &common, decryptors, &stop));
            drop(prepared);
            free.send(()).unwrap();
        });
        let made: Vec<&str> =
            specs.iter().filter(|(_, spec)| spec.get().is_some()).map(|(id, _)| id.as_str()).collect();
        assert_eq!(made, ["z"], "the one envelope that was next");
    }
}
