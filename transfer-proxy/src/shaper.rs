//! Who may send or take how much: the rates of a transfer, of its group and of the site hold
//! together; what is urgent goes first, and the rest by weight.
//!
//! A rate is kept by the generic cell rate algorithm (ITU-T I.371): a bucket knows when it is free
//! again. Where several wait, the one with the least virtual time goes (self-clocked fair
//! queueing, Golestani 1994): what it takes, divided by its weight, is added to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::order::{Group, Share};

/// Bytes that are asked for at a time.
pub(crate) const SLICE: usize = 64 << 10;

/// What was not used for so long may be used at once.
const BURST: Duration = Duration::from_millis(50);

/// A rate, in bytes a second, and when it allows the next bytes.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: Option<u64>,
    free_at: Instant,
}

impl Bucket {
    fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), free_at: now }
    }

    fn charge(&mut self, bytes: usize, now: Instant) {
        if let Some(rate) = self.rate {
            let from = now.checked_sub(BURST).map_or(self.free_at, |from| self.free_at.max(from));
            self.free_at = from + Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
    }
}

struct State {
    site: Bucket,
    groups: HashMap<Group, GroupBucket>,
    waiting: Vec<Waiting>,
    /// The virtual time of whoever went last.
    clock: f64,
    next: u64,
}

struct GroupBucket {
    bucket: Bucket,
    /// Transfers that are in it.
    members: usize,
}

struct Waiting {
    number: u64,
    urgent: bool,
    time: f64,
    group: Option<Group>,
    /// When the transfer's own rate allows it.
    own: Instant,
}

impl State {
    /// When the rates of a waiter's transfer and group allow it.
    fn allowed_at(&self, waiting: &Waiting) -> Instant {
        let group = waiting.group.and_then(|group| self.groups.get(&group));
        group.map_or(waiting.own, |group| group.bucket.free_at.max(waiting.own))
    }

    /// Whose turn it is now.
    fn first(&self, now: Instant) -> Option<u64> {
        let allowed = self.waiting.iter().filter(|waiting| self.allowed_at(waiting) <= now);
        let before = |one: &&Waiting, other: &&Waiting| {
            let key = |waiting: &Waiting| (!waiting.urgent, waiting.time, waiting.number);
            key(one).partial_cmp(&key(other)).expect("virtual times are numbers")
        };
        allowed.min_by(before).map(|waiting| waiting.number)
    }
}

/// The site's link, shared by all transfers of a proxy.
pub(crate) struct Shaper {
    state: Mutex<State>,
    /// Somebody went, or does not wait any more.
    moved: Notify,
}

impl Shaper {
    /// With the site's rate in bytes a second, if it has one.
    pub(crate) fn new(rate: Option<u64>) -> Arc<Self> {
        let site = Bucket::new(rate, Instant::now());
        let (groups, waiting) = (HashMap::new(), Vec::new());
        let state = State { site, groups, waiting, clock: 0.0, next: 0 };
        Arc::new(Self { state: Mutex::new(state), moved: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The part of one transfer. The latest rate of a group holds.
    pub(crate) fn part(self: &Arc<Self>, share: Share) -> Part {
        let now = Instant::now();
        if let Some(group) = share.group {
            let mut state = self.state();
            let bucket = Bucket::new(share.group_rate.map(|rate| rate.0), now);
            let known = state.groups.entry(group).or_insert(GroupBucket { bucket, members: 0 });
            known.members += 1;
            known.bucket.rate = bucket.rate;
        }
        let own = Bucket::new(share.rate.map(|rate| rate.0), now);
        Part { shaper: self.clone(), share, own: Mutex::new(Own { bucket: own, time: 0.0 }) }
    }
}

/// What one transfer gets.
pub(crate) struct Part {
    shaper: Arc<Shaper>,
    share: Share,
    own: Mutex<Own>,
}

struct Own {
    bucket: Bucket,
    /// Virtual time.
    time: f64,
}

impl Part {
    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().expect("no holder of this lock panics")
    }

    /// Waits until so many bytes may go; [`SLICE`] at most, so that nobody waits for long.
    pub(crate) async fn take(&self, bytes: usize) {
        let Some(place) = self.queue() else { return };
        loop {
            let moved = self.shaper.moved.notified();
            let Some(until) = self.step(place.number, bytes) else { return };
            tokio::select! {
                () = moved => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// A place in the queue; none where no rate is set at all.
    fn queue(&self) -> Option<Place<'_>> {
        let mut state = self.shaper.state();
        let mut own = self.own();
        let group = self.share.group.and_then(|group| state.groups.get(&group));
        let is_free = state.site.rate.is_none()
            && own.bucket.rate.is_none()
            && group.is_none_or(|group| group.bucket.rate.is_none());
        if is_free {
            return None;
        }
        // Whoever asked for nothing for a while has saved nothing by that.
        own.time = own.time.max(state.clock);
        let number = state.next;
        state.next += 1;
        let waiting = Waiting {
            number,
            urgent: self.share.urgent,
            time: own.time,
            group: self.share.group,
            own: own.bucket.free_at,
        };
        state.waiting.push(waiting);
        Some(Place { shaper: &self.shaper, number })
    }

    /// Goes if it may; else tells when to look again, unless somebody moves before.
    fn step(&self, number: u64, bytes: usize) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.shaper.state();
        let mut own = self.own();
        let at = state.waiting.iter().position(|waiting| waiting.number == number)?;
        // Other lanes of the same transfer may have gone.
        state.waiting[at].own = own.bucket.free_at;
        let allowed = state.allowed_at(&state.waiting[at]);
        if allowed > now {
            return Some(allowed.max(state.site.free_at));
        }
        if state.site.free_at > now {
            return Some(state.site.free_at);
        }
        if state.first(now) != Some(number) {
            // Whoever it is looks at the same moment.
            return Some(now + BURST);
        }
        let waiting = state.waiting.swap_remove(at);
        state.clock = waiting.time;
        own.time = own.time.max(waiting.time) + bytes as f64 / f64::from(self.share.weight.max(1));
        own.bucket.charge(bytes, now);
        state.site.charge(bytes, now);
        if let Some(group) = waiting.group.and_then(|group| state.groups.get_mut(&group)) {
            group.bucket.charge(bytes, now);
        }
        drop(state);
        self.shaper.moved.notify_waiters();
        None
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let Some(group) = self.share.group else { return };
        let mut state = self.shaper.state();
        if let Some(known) = state.groups.get_mut(&group) {
            known.members -= 1;
            if known.members == 0 {
                state.groups.remove(&group);
            }
        }
    }
}

/// A place in the queue, until this is dropped.
struct Place<'a> {
    shaper: &'a Shaper,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.shaper.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.number != self.number);
        let has_left = state.waiting.len() < before;
        drop(state);
        if has_left {
            self.shaper.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Bytes;
    use std::sync::atomic::{AtomicU64, Ordering};

    const MB: u64 = 1_000_000;

    /// Lets each of `shares` take as much as it can for `seconds`, by two lanes; what they took.
    async fn run(site: Option<u64>, shares: &[Share], seconds: u64) -> Vec<f64> {
        let shaper = Shaper::new(site);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut taken = vec![];
        let mut tasks = tokio::task::JoinSet::new();
        for share in shares {
            let part = Arc::new(shaper.part(share.clone()));
            let took = Arc::new(AtomicU64::new(0));
            taken.push(took.clone());
            for _ in 0..2 {
                let (part, took) = (part.clone(), took.clone());
                tasks.spawn(async move {
                    while Instant::now() < end {
                        part.take(SLICE).await;
                        took.fetch_add(SLICE as u64, Ordering::Relaxed);
                    }
                });
            }
        }
        while tasks.join_next().await.is_some() {}
        let rate = |took: &Arc<AtomicU64>| took.load(Ordering::Relaxed) as f64 / seconds as f64;
        taken.iter().map(|took| rate(took) / MB as f64).collect()
    }

    fn is_about(got: f64, wanted: f64) -> bool {
        (got - wanted).abs() < 0.06 * wanted + 0.05
    }

    fn rate(mb: u64) -> Option<Bytes> {
        Some(Bytes(mb * MB))
    }

    #[tokio::test(start_paused = true)]
    async fn transfers_share_the_sites_rate_by_weight() {
        let share = |weight| Share { weight, ..Share::default() };
        let rates = run(Some(20 * MB), &[share(1), share(3)], 20).await;
        assert!(is_about(rates[0], 5.0) && is_about(rates[1], 15.0), "{rates:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rates_of_transfer_group_and_site_hold_together_and_nothing_is_left_unused() {
        let group = Some(Group(7));
        let shares = [
            Share { rate: rate(1), ..Share::default() },
            Share { group, group_rate: rate(6), ..Share::default() },
            Share { group, group_rate: rate(6), weight: 2, ..Share::default() },
            Share::default(),
        ];
        let rates = run(Some(20 * MB), &shares, 20).await;
        for (rate, wanted) in rates.iter().zip([1.0, 2.0, 4.0, 13.0]) {
            assert!(is_about(*rate, wanted), "{rates:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_goes_first() {
        let shares = [
            Share { weight: 100, ..Share::default() },
            Share { urgent: true, rate: rate(8), ..Share::default() },
        ];
        let rates = run(Some(10 * MB), &shares, 20).await;
        assert!(is_about(rates[0], 2.0) && is_about(rates[1], 8.0), "{rates:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stops_waiting_holds_nobody_up() {
        let shaper = Shaper::new(Some(MB));
        let (gone, stays) = (shaper.part(Share::default()), shaper.part(Share::default()));
        for _ in 0..4 {
            stays.take(SLICE).await;
        }
        let waited = tokio::time::timeout(Duration::from_millis(1), gone.take(SLICE)).await;
        assert!(waited.is_err());
        let begun = Instant::now();
        stays.take(SLICE).await;
        assert!(begun.elapsed() < Duration::from_millis(80), "{:?}", begun.elapsed());
        assert!(shaper.state().waiting.is_empty());
        drop((gone, stays));
        assert!(shaper.state().groups.is_empty());
    }

    #[tokio::test]
    async fn without_any_rate_nobody_waits() {
        let shaper = Shaper::new(None);
        let part = shaper.part(Share { group: Some(Group(1)), ..Share::default() });
        for _ in 0..100_000 {
            part.take(SLICE).await;
        }
    }
}
