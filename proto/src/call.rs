//! Which call carries which operation.

use protocol::Op;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::federation::Sealed;
use crate::federation::federation_client::FederationClient;

/// Sends a sealed request, by the call that its operation has.
///
/// # Errors
///
/// What the other side, or the way to it, says instead of an answer.
pub async fn call(
    client: &mut FederationClient<Channel>,
    op: &Op,
    sealed: Sealed,
) -> Result<Response<Sealed>, Status> {
    match op {
        Op::MigrationRequest { .. } => client.migration_request(sealed).await,
        Op::ForcedMigration { .. } | Op::Evict { .. } => client.forced_migration(sealed).await,
        Op::InitiateTransfer { .. } => client.initiate_transfer(sealed).await,
        Op::TransferVerification { .. } => client.transfer_verification(sealed).await,
        Op::Deliver { .. } => client.deliver(sealed).await,
        Op::Handback { .. } => client.handback(sealed).await,
        Op::Retire { .. } => client.retire(sealed).await,
        Op::Control { .. } | Op::Monitor { .. } => client.control(sealed).await,
        Op::Report { .. } => client.report(sealed).await,
        Op::Withdraw { .. } => client.withdraw(sealed).await,
        Op::Confirm { .. } => client.confirm(sealed).await,
        Op::Reclaim { .. } => client.reclaim(sealed).await,
        Op::Superseded { .. } => client.superseded(sealed).await,
    }
}
