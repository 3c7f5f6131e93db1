//! The plainest policy: whoever has room takes the VM, and everybody may be asked. VMs that are to
//! stay apart share no host, and are put where fewer of them are.

use model::decision::{
    Admit, Delegate, Expose, Granted, Group, Policy, Rank, Ranked, Route, Share, Transfer, Trigger,
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
        let Group { host, site } = input.group;
        if !input.free.fits(&input.descriptor.resources) {
            Verdict::Refuse(vec!["no room".to_owned()])
        } else if host > 0 {
            Verdict::Refuse(vec![format!("{host} of its group on the host, {site} at the site")])
        } else {
            Verdict::Allow
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
        order.sort_by_key(|at| (!input.offers[*at].runs, input.offers[*at].group));
        let ranked = order.into_iter().map(|offer| {
            let group = input.offers[offer].group;
            let reasons = (group > 0).then(|| format!("{group} of its group went there"));
            let reasons = reasons.into_iter().collect();
            Ranked { offer, score: 0.0, reasons, excluded: false }
        });
        ranked.collect()
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
