//! The client of QMP with the server's words given: for fuzzing. A guest says nothing there, but one
//! that has taken its QEMU over says what it wants.

use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::qemu::measure::Told;
use crate::qemu::qmp::{Qmp, QmpError};

/// What a client makes of a server that says `said`, from its greeting on, and closes: the answer
/// to its first command, after which it asks what the guest has used. `said` must fit a socket's
/// buffer.
pub async fn qmp_answer(said: &[u8]) -> Result<Value, QmpError> {
    const LIMIT: Duration = Duration::from_secs(5);
    let socket = QmpError::Socket;
    let (client, mut server) = UnixStream::pair().map_err(socket)?;
    server.write_all(said).await.map_err(socket)?;
    // Only this direction: the client can still send its commands.
    server.shutdown().await.map_err(socket)?;
    let mut client = Qmp::greet(client, LIMIT).await?;
    let answer = client.run("query-status", Value::Null).await?;
    let _ = Told::ask(&mut client).await;
    Ok(answer)
}
