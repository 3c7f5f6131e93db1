//! The rules: how a VM is placed, moved, forced out and handed over, as values.
//!
//! [`Site`] is the whole of a site's behaviour towards its peers. It has no clock, no socket, no
//! disk and no random source: all of that is [`World`], passed in. The calling order is:
//!
//! 1. [`Site::start`] once, with the state folded from the journal and the guests found running.
//! 2. [`Site::turn`] for the [`Event`]s that have come. Through [`Driver`], every [`Row`] is made
//!    durable, **then** the [`Effect`]s are carried out, in this order and no other.
//! 3. [`Site::next_deadline`] tells when the next turn is due, be there events or not.
//!
//! A crash between any two of these lines leaves a journal that step 1 knows how to go on from.
//!
//! ```text
//!   Controller                Source                       Destination
//!   collect offers  ------------------------------------------->  (offer, in memory)
//!   choose; CHOSEN
//!   forced migration ------>  OFFERED
//!   initiate  ------------------------------------------------->  ADMITTED
//!                             INITIATED   <== session opened ===
//!                             QUIESCED
//!                             SENT        === files ===========>  READY
//!   verify, with READY ---->  RELEASED    === certificate =====>  OWNED, START_INTENT
//!   deliver certificate -------------------------------------->   STARTED
//!   FLIPPED                   RECEIPTED   <== owned ============
//!   retire ---------------->  (path row gone)
//! ```

mod contract;
mod controller;
mod effect;
mod gather;
mod group;
mod index;
mod kept;
mod law;
mod leave;
pub mod message;
mod path;
mod record;
mod relay;
mod rescue;
mod restart;
mod row;
mod section;
mod site;
mod source;
mod state;
mod target;
mod timer;
mod view;

pub use effect::{
    Ask, CallError, CallId, Caller, Command, Effect, Event, Found, GuestEvent, Output, Reply,
    TransferEvent,
};
pub use law::{Driver, Start};
pub use message::{Action, Answer, Hop, Op, Origin, Outcome, Request, Sealed, Told};
pub use record::{ROW_VERSION, Record, Unreadable};
pub use relay::RelayRole;
pub use row::{Down, Edge, Evict, Goal, LIBRARY, Mode, Party, Result as JourneyResult, Row};
pub use site::{Config, Site, World};
pub use state::{
    Chosen, Host, Illegal, Journey, Migration, SourceRole, SourceStep, State, Stay, TargetRole,
    TargetStep, Vm, library,
};
pub use view::{ContractView, NextMove, OfferView, Progress, VmView};
