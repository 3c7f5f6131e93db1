//! The site's rules in Rego, and the engine that answers by them.
//!
//! Each decision has one file in `rego/`, with its tests beside it. A site overrides a file by one
//! of the same name in its own folder. All are checked when the engine is made, so that a bad
//! policy stops the start of a site and never a request.
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

mod decision;
mod engine;
mod outcome;
mod rules;
#[doc(hidden)]
pub mod samples;

pub use decision::Decision;
pub use engine::Engine;
pub use outcome::Failure;
pub use rules::{EVALUATION_BUDGET, MAX_POLICY_BYTES, PolicyError};
