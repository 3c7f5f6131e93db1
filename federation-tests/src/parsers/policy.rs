//! Policies: what they are asked, and their own text.

use std::collections::BTreeSet;
use std::fs;
use std::sync::LazyLock;

use model::decision::{
    Admit, Delegate, Expose, Granted, Policy, Rank, Share, Transfer, Trigger, Verdict,
};
use model::limit;
use policies::{Decision, Engine, MAX_POLICY_BYTES, PolicyError, Unsound};
use serde::{Deserialize, Serialize};

use super::exactly;

/// One question of each kind.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    Admit(Admit),
    Delegate(Delegate),
    Expose(Expose),
    Rank(Rank),
    Transfer(Transfer),
    Trigger(Trigger),
    Share(Share),
}

static DEFAULTS: LazyLock<Engine> = LazyLock::new(Engine::defaults);

/// A question to the policies that come with Sojourn, made of what a peer may say. They always
/// decide, and in the terms that they are asked in.
///
/// # Panics
///
/// If a promise is broken.
pub fn decision(data: &[u8]) {
    let Some(question) = exactly::<Question>(data) else { return };
    match question {
        Question::Admit(input) if input.descriptor.check().is_ok() => {
            decided(&DEFAULTS.admit(&input));
        }
        Question::Delegate(input) if input.descriptor.check().is_ok() => {
            decided(&DEFAULTS.delegate(&input));
        }
        Question::Expose(input) if input.offers.len() <= limit::MAX_OFFERS => {
            let shown = DEFAULTS.expose(&input);
            assert!(shown.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(shown.iter().all(|offer| *offer < input.offers.len()));
        }
        Question::Rank(input)
            if input.offers.len() <= limit::MAX_OFFERS && input.descriptor.check().is_ok() =>
        {
            let ranked = DEFAULTS.rank(&input);
            let offers: BTreeSet<usize> = ranked.iter().map(|ranked| ranked.offer).collect();
            assert_eq!(offers, (0..input.offers.len()).collect(), "every offer once");
            assert_eq!(ranked.len(), input.offers.len(), "every offer once");
            assert!(ranked.is_sorted_by_key(|ranked| ranked.excluded), "the excluded come last");
            for ranked in &ranked {
                told(&ranked.reasons);
            }
        }
        Question::Transfer(input) if input.descriptor.check().is_ok() => {
            DEFAULTS.transfer(&input);
        }
        Question::Share(input) if input.descriptor.check().is_ok() => {
            assert_eq!(DEFAULTS.share(&input), Granted::default(), "nothing is limited by itself");
        }
        Question::Trigger(input) if input.descriptor.check().is_ok() => {
            assert!(DEFAULTS.trigger(&input).is_empty(), "nothing moves by itself");
        }
        _ => {}
    }
}

fn decided(verdict: &Verdict) {
    if let Verdict::Refuse(reasons) = verdict {
        assert!(!reasons.is_empty());
        told(reasons);
    }
}

fn told(reasons: &[String]) {
    assert!(reasons.len() <= limit::MAX_REASONS);
    for reason in reasons {
        assert!(reason.chars().count() <= limit::MAX_REASON_CHARS);
        // The budget is one of time by the clock, which a busy machine may use up by itself.
        let decided = !reason.starts_with("policy failed") || reason.ends_with("took too long");
        assert!(decided, "{reason}");
    }
}

/// The text of a site's own policy. It is taken as a whole or refused with the reason, before the
/// site starts; one that is taken decides.
///
/// # Panics
///
/// If a promise is broken.
pub fn policy(data: &[u8]) {
    // Which decision it is for is told by its package, as the file's name must be.
    let text = String::from_utf8_lossy(data);
    let named = |decision: &Decision| text.contains(&format!("sojourn.{decision}"));
    let decision = Decision::ALL.into_iter().find(named).unwrap_or(Decision::Transfer);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join(format!("{decision}.rego"));
    fs::write(&file, data).expect("a temporary file takes what it gets");
    match Engine::load(folder.path()) {
        // Every decision was asked of it, with made-up requests.
        Ok(_) => assert!(data.len() <= MAX_POLICY_BYTES),
        Err(Unsound(errors)) => {
            assert!(!errors.is_empty());
            for error in errors {
                let unreadable = matches!(error, PolicyError::Read { .. });
                assert!(!unreadable || std::str::from_utf8(data).is_err(), "{error}");
                assert!(!error.to_string().is_empty());
            }
        }
    }
}
