//! When a site does what nothing else makes it do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{MigrationId, OperationId, PeerName, RequestId, Time, VmId};

/// A timer of the machine; it is not durable, and set anew after a restart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    /// A Controller's next step.
    Journey(OperationId),
    /// A Migration request's answers so far must do.
    Collect(RequestId),
    /// A Source aborts by itself.
    SourceDeadline(MigrationId),
    /// An admitted migration never became READY.
    AdmitExpiry(MigrationId),
    /// A READY Destination dials its Source again; one that has accepted hangs up.
    Pull(MigrationId),
    /// A READY Destination has heard nothing for so long that it keeps the files no more.
    Lapse(MigrationId),
    /// A transfer is passed on no more.
    Relay(MigrationId),
    /// A Source deletes its frozen copy, or has said for long enough that it aborted.
    Purge(MigrationId),
    /// A guest is not as it should be: it is seen to again.
    Guest(VmId),
    /// The site above is to be told again.
    Report(VmId),
    /// The site above is to be asked again whether a VM is still here.
    Confirm(VmId),
    /// Old offers are forgotten, and whatever else is kept in mind for a while.
    Offers,
    /// What is shared with a peer whose peering ends is looked at again.
    Leave(PeerName),
}

impl Timer {
    /// Whether it is a point in time that was agreed on, or that a row has.
    fn is_deadline(&self) -> bool {
        match self {
            Self::SourceDeadline(_) | Self::Lapse(_) | Self::Relay(_) | Self::Purge(_) => true,
            Self::Journey(_)
            | Self::Collect(_)
            | Self::AdmitExpiry(_)
            | Self::Pull(_)
            | Self::Guest(_)
            | Self::Report(_)
            | Self::Confirm(_)
            | Self::Offers
            | Self::Leave(_) => false,
        }
    }
}

/// The timers that are armed, each once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(Time, Timer)>,
    /// The same by timer.
    armed: BTreeMap<Timer, Time>,
    clock: Clock,
}

impl Timers {
    /// The one that is due first.
    pub(crate) fn first(&self) -> Option<&(Time, Timer)> {
        self.queue.first()
    }

    /// When this one is due, if it is armed.
    pub(crate) fn at(&self, timer: &Timer) -> Option<Time> {
        self.armed.get(timer).copied()
    }

    pub(crate) fn arm(&mut self, timer: Timer, at: Time) {
        self.disarm(&timer);
        self.queue.insert((at, timer.clone()));
        self.armed.insert(timer, at);
    }

    pub(crate) fn disarm(&mut self, timer: &Timer) {
        if let Some((timer, at)) = self.armed.remove_entry(timer) {
            self.queue.remove(&(at, timer));
        }
    }

    /// What time it is now. If the clock was set back, what is waited for is taken along: a try
    /// that was due in a second would else come when the clock has made up for it.
    pub(crate) fn follow(&mut self, now: Time) {
        let back = self.clock.0.since(now);
        self.clock = Clock(now);
        if back == Duration::ZERO {
            return;
        }
        let waits = self.armed.iter().filter(|(timer, _)| !timer.is_deadline());
        let waits: Vec<_> = waits.map(|(timer, at)| (timer.clone(), at.before(back))).collect();
        for (timer, at) in waits {
            self.arm(timer, at);
        }
    }
}

/// What the clock said last. It is how time passed, and not part of what is armed: two that differ
/// in it alone are the same.
#[derive(Debug, Clone, Copy, Default)]
struct Clock(Time);

impl PartialEq for Clock {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Clock {}

impl std::hash::Hash for Clock {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}
