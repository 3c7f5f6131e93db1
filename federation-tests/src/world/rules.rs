//! The plainest policy: whoever has room takes the VM, and everybody may be asked.

use model::decision::{
    Admit, Delegate, Expose, Granted, Policy, Rank, Ranked, Route, Share, Transfer, Trigger,
    Verdict,
};

/// Allows everything, and tries offers in their order, stores last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Willing {
    /// Passes all transfers of others through its own proxy, and not only those that need it.
    pub relays: bool,
}

impl Policy for Willing {
    fn admit(&self, input: &Admit) -> Verdict {
        if input.free.fits(&input.descriptor.resources) {
            Verdict::Allow
        } else {
            Verdict::Refuse(vec!["no room".to_owned()])
        }
    }

    fn delegate(&self, _: &Delegate) -> Verdict {
        Verdict::Allow
    }

    fn expose(&self, input: &Expose) -> Vec<usize> {
        (0..input.offers.len()).collect()
    }

    fn rank(&self, input: &Rank) -> Vec<Ranked> {
        let mut order: Vec<usize> = (0..input.offers.len()).collect();
        order.sort_by_key(|at| !input.offers[*at].runs);
        order
            .into_iter()
            .map(|offer| Ranked { offer, score: 0.0, reasons: vec![], excluded: false })
            .collect()
    }

    fn transfer(&self, input: &Transfer) -> Route {
        if self.relays || input.must_meet { Route::Relayed } else { Route::Direct }
    }

    fn share(&self, _: &Share) -> Granted {
        Granted::default()
    }

    fn trigger(&self, _: &Trigger) -> Vec<String> {
        vec![]
    }
}
