//! How monitoring at this site stands as a whole.

use monitoring::book::Census;

use super::{LedgerError, Monitor};

impl Monitor {
    /// What the book says of all VMs together.
    pub(crate) async fn census(&self) -> Result<Census, LedgerError> {
        self.ledger().run(|book| book.census()).await
    }

    /// Returns when the book has done all that waited for it.
    pub(crate) async fn answers(&self) -> Result<(), LedgerError> {
        self.ledger().run(|_| Ok(())).await
    }
}
