//! Makes the specs for the steps that create a workload, and tries the key when it may be a wrong one. Only this stage
//! decrypts, so a pass that changes nothing does no RSA.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::desired::{Desired, Rejection};
use crate::key::ManagerKey;
use crate::model::{Connector, ConnectorId, VariableValue};
use crate::plan::Plan;
use crate::platform::envelope::{self, EnvelopeError};
use crate::render::{self, Common, Spec};
use crate::secret::Secret;
use crate::stop::Stop;

/// The specs that the steps of a plan need.
#[derive(Debug, Default)]
pub struct Prepared {
    pub specs: BTreeMap<ConnectorId, Spec>,
    /// The connectors whose values cannot be used. Their steps are not carried out.
    pub rejected: BTreeMap<ConnectorId, Rejection>,
}

/// The results of opening envelopes, by ciphertext, so that equal envelopes are opened once.
type Opened<'a> = HashMap<&'a str, Result<Secret, EnvelopeError>>;

/// Bounds decryption for all lanes of a pass together: at any time each core works on one envelope at most.
#[derive(Debug, Clone)]
pub struct Decryptors(Arc<Free>);

#[derive(Debug)]
struct Free {
    cores: Mutex<usize>,
    freed: Condvar,
    all: usize,
}

impl Decryptors {
    /// Allows as many decryptions at a time as there are cores for this process.
    #[must_use]
    pub fn new() -> Self {
        let all = thread::available_parallelism().map_or(1, usize::from);
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

impl Default for Decryptors {
    fn default() -> Self {
        Self::new()
    }
}

/// Decrypts and renders the connectors, on all cores, and blocks its thread meanwhile. When the pass has to stop,
/// connectors that it did not get to have neither a spec nor a rejection.
#[must_use]
pub fn prepare(
    plan: &Plan,
    desired: &Desired,
    key: &ManagerKey,
    common: &Common<'_>,
    decryptors: &Decryptors,
    stop: &Stop,
) -> Prepared {
    let wanted = plan.steps().filter(|(_, step)| step.makes_workload()).map(|(entry, _)| &entry.connector);
    let connectors: Vec<_> = wanted.filter_map(|id| desired.connectors.get(id)).collect();
    let opened = open_all(key, &envelopes(connectors.iter().copied()), decryptors, stop);
    let mut prepared = Prepared::default();
    for connector in connectors {
        let is_open = |value: &VariableValue| match value {
            VariableValue::Encrypted(envelope) => opened.contains_key(envelope.as_str()),
            VariableValue::Clear(_) => true,
        };
        if !connector.variables.iter().all(|variable| is_open(&variable.value)) {
            continue;
        }
        let open = |envelope: &str| opened.get(envelope).cloned().unwrap_or(Err(EnvelopeError::Damaged));
        match render::spec(connector, common, open) {
            Ok(spec) => {
                prepared.specs.insert(connector.id.clone(), spec);
            }
            Err(rejection) => {
                prepared.rejected.insert(connector.id.clone(), rejection);
            }
        }
    }
    prepared
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

/// Tries the key on the listed values until it opens one, on all cores, and blocks its thread meanwhile. `None` when the
/// pass had to stop before that was certain.
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

/// The envelopes of these connectors, equal ones once.
fn envelopes<'a>(connectors: impl Iterator<Item = &'a Connector>) -> Vec<&'a str> {
    let all = connectors.flat_map(|connector| &connector.variables).filter_map(|variable| match &variable.value {
        VariableValue::Encrypted(envelope) => Some(envelope.as_str()),
        VariableValue::Clear(_) => None,
    });
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Opens the envelopes on all cores, until all are opened or the pass has to stop.
fn open_all<'a>(key: &ManagerKey, envelopes: &[&'a str], decryptors: &Decryptors, stop: &Stop) -> Opened<'a> {
    let opened = Mutex::new(Opened::with_capacity(envelopes.len()));
    open_each(key, envelopes, decryptors, stop, |envelope, clear| {
        opened.lock().unwrap_or_else(PoisonError::into_inner).insert(envelope, clear);
        true
    });
    opened.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the envelopes on all cores and gives each result to `take`, until that returns false, all are opened, or the
/// pass has to stop.
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
