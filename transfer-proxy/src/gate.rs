//! Holds off whoever guesses: addresses that failed too often within a second are not answered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long failures count.
const WINDOW: Duration = Duration::from_secs(1);

/// Addresses with failures that are told apart within one window. Those of others count for nothing:
/// to answer nobody then would let a crowd shut the door for all.
const MAX_ADDRESSES: usize = 4096;

/// Counts failed attempts per address.
pub(crate) struct Gate {
    allowed: u32,
    state: Mutex<State>,
}

struct State {
    since: Instant,
    failed: HashMap<IpAddr, u32>,
}

impl Gate {
    /// Lets `allowed` failures per second and address pass.
    pub(crate) fn new(now: Instant, allowed: u32) -> Self {
        Self { allowed, state: Mutex::new(State { since: now, failed: HashMap::new() }) }
    }

    /// Whether an attempt from `address` is looked at.
    pub(crate) fn is_open(&self, now: Instant, address: IpAddr) -> bool {
        let state = self.fresh(now);
        match state.failed.get(&network(address)) {
            Some(failed) => *failed < self.allowed,
            None => true,
        }
    }

    /// An attempt from `address` failed.
    pub(crate) fn failed(&self, now: Instant, address: IpAddr) {
        let mut state = self.fresh(now);
        let room = state.failed.len() < MAX_ADDRESSES;
        let address = network(address);
        if room || state.failed.contains_key(&address) {
            *state.failed.entry(address).or_default() += 1;
        }
    }

    fn fresh(&self, now: Instant) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if now.duration_since(state.since) >= WINDOW {
            *state = State { since: now, failed: HashMap::new() };
        }
        state
    }
}

/// The network by which an address is counted: whoever has one IPv6 address has 2^64 of them.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_guesses_is_held_off_for_a_second_and_nobody_else_is() {
        let start = Instant::now();
        let gate = Gate::new(start, 3);
        let (bad, good) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..3 {
            assert!(gate.is_open(start, bad));
            gate.failed(start, bad);
        }
        assert!(!gate.is_open(start, bad));
        assert!(gate.is_open(start, good));
        assert!(gate.is_open(start + WINDOW, bad));
    }

    #[test]
    fn failures_from_one_ipv6_network_count_together() {
        let start = Instant::now();
        let gate = Gate::new(start, 1);
        gate.failed(start, "2001:db8::1".parse().unwrap());
        assert!(!gate.is_open(start, "2001:db8::ffff:2".parse().unwrap()));
        assert!(gate.is_open(start, "2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn memory_stays_bounded_when_everybody_guesses_and_nobody_else_is_held_off() {
        let start = Instant::now();
        let gate = Gate::new(start, 1);
        for n in 0..2 * MAX_ADDRESSES as u32 {
            gate.failed(start, IpAddr::from(n.to_be_bytes()));
        }
        assert_eq!(gate.state.lock().unwrap().failed.len(), MAX_ADDRESSES);
        assert!(gate.is_open(start, IpAddr::from([203, 0, 113, 1])));
    }
}
