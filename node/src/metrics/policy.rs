//! The site's policies, with their decisions counted.

use std::sync::{Arc, PoisonError, RwLock};

use model::decision::{
    Admit, Delegate, Expose, Granted, Policy, Rank, Ranked, Route, Share, Transfer, Trigger,
    Verdict,
};
use policies::Engine;

use super::Metrics;

/// Every decision, with every verdict that it can have.
pub(super) const VERDICTS: [(&str, &str); 13] = [
    ("admit", ALLOW),
    ("admit", REFUSE),
    ("delegate", ALLOW),
    ("delegate", REFUSE),
    ("expose", "all"),
    ("expose", "some"),
    ("expose", "none"),
    ("rank", "some"),
    ("rank", "none"),
    ("transfer", "direct"),
    ("transfer", "relayed"),
    ("trigger", "move"),
    ("trigger", "stay"),
];

const ALLOW: &str = "allow";
const REFUSE: &str = "refuse";

/// A site's policies. A policy that fails gives the safe answer, and counts as having given it.
pub(crate) struct CountedPolicy {
    /// Each decision is taken by the engine that is there when it begins.
    engine: RwLock<Arc<Engine>>,
    metrics: Metrics,
}

impl CountedPolicy {
    pub(crate) fn new(engine: Engine, metrics: Metrics) -> Self {
        Self { engine: RwLock::new(Arc::new(engine)), metrics }
    }

    /// Has all further decisions taken by these policies.
    pub(crate) fn replace(&self, engine: Engine) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(engine);
    }

    /// The policies in force. Nobody waits for a decision in order to replace them.
    fn engine(&self) -> Arc<Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => ALLOW,
        Verdict::Refuse(_) => REFUSE,
    }
}

impl Policy for CountedPolicy {
    fn admit(&self, input: &Admit) -> Verdict {
        let verdict = self.engine().admit(input);
        self.metrics.decided("admit", name(&verdict));
        verdict
    }

    fn delegate(&self, input: &Delegate) -> Verdict {
        let verdict = self.engine().delegate(input);
        self.metrics.decided("delegate", name(&verdict));
        verdict
    }

    fn expose(&self, input: &Expose) -> Vec<usize> {
        let shown = self.engine().expose(input);
        let verdict = match shown.len() {
            all if all == input.offers.len() => "all",
            0 => "none",
            _ => "some",
        };
        self.metrics.decided("expose", verdict);
        shown
    }

    fn rank(&self, input: &Rank) -> Vec<Ranked> {
        let ranked = self.engine().rank(input);
        let verdict = if ranked.iter().any(|offer| !offer.excluded) { "some" } else { "none" };
        self.metrics.decided("rank", verdict);
        ranked
    }

    fn transfer(&self, input: &Transfer) -> Route {
        let route = self.engine().transfer(input);
        let verdict = match route {
            Route::Direct => "direct",
            Route::Relayed => "relayed",
        };
        self.metrics.decided("transfer", verdict);
        route
    }

    fn share(&self, input: &Share) -> Granted {
        // No verdict: what it gives is shown by the rates of transfers.
        self.engine().share(input)
    }

    fn trigger(&self, input: &Trigger) -> Vec<String> {
        let reasons = self.engine().trigger(input);
        self.metrics.decided("trigger", if reasons.is_empty() { "stay" } else { "move" });
        reasons
    }
}
