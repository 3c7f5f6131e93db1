//! Rows of the journal. They are the site's own; but a file may be damaged, or edited.

use protocol::{Row, State};

/// Rows of one input.
const MAX_ROWS: usize = 64;

/// Rows in JSON, one a line. Each reads back, and either follows from those before it or changes
/// nothing.
///
/// # Panics
///
/// If a promise is broken.
pub fn journal(data: &[u8]) {
    let mut state = State::default();
    for line in data.split(|byte| *byte == b'\n').take(MAX_ROWS) {
        let Ok(row) = serde_json::from_slice::<Row>(line) else { continue };
        let text = serde_json::to_string(&row).expect("rows are plain data");
        assert_eq!(serde_json::from_str::<Row>(&text).ok().as_ref(), Some(&row));
        assert!(Row::KINDS.contains(&row.kind()));
        let before = state.clone();
        if state.apply(&row).is_err() {
            assert_eq!(state, before, "{} was refused and changed something", row.kind());
        }
    }
    assert!(!format!("{state:?}").is_empty());
    for host in state.hosts.keys() {
        state.used(host);
    }
}
