//! The site's rules in Rego, and the engine that answers by them.
//!
//! Each decision has one file in `rego/`, with its tests beside it. A site overrides a file by one
//! of the same name in its own folder, in which `data.sojourn.defaults.DECISION` are the rules that
//! it replaces. All are checked when the engine is made, so that a bad policy stops the start of a
//! site and never a request. `examples/` has files to begin with.
//!
//! Should an evaluation fail all the same, the answer is the one that gives least away:
//!
//! | decision | when its policy fails |
//! | --- | --- |
//! | admit, delegate | refused |
//! | expose | nothing is shown |
//! | rank | every offer is excluded |
//! | transfer | relayed: slower, and discloses no proxy of another site |
//! | share | what is configured alone limits it |
//! | trigger | the VM stays where it is |
//!
//! The cause goes to the log. Reasons may reach a peer, and say no more than that a policy failed.

mod check;
mod decision;
mod engine;
mod error;
mod explain;
mod outcome;
mod rules;
#[doc(hidden)]
pub mod samples;

pub use check::{Checked, TestRun, Whose, check, test};
pub use decision::{Decision, DecisionError};
pub use engine::Engine;
pub use error::{Place, PolicyError, Unsound};
pub use explain::{Answer, BadInput, Explained, example};
pub use outcome::Failure;
pub use rules::{EVALUATION_BUDGET, MAX_POLICY_BYTES};
