//! QMP, the QEMU Machine Protocol (QEMU's `docs/interop/qmp-spec.txt`): one JSON object a line.
//!
//! A connection is made for a few commands and closed: QEMU serves one client a socket at a time.
//! Events are read past, known or not; the callers ask for the status that they wait for.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::socket::connect_in;

/// Bytes of one line at most; QEMU's largest answer to what is asked here is below 10 KiB.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Lines that are read past while waiting for one answer.
const MAX_LINES: usize = 4096;
/// For connecting, the greeting and each answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Why a QMP exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("QMP socket failed")]
    Socket(#[source] io::Error),
    /// QEMU closed the connection in mid-exchange, which it does when it ends.
    #[error("QEMU closed the connection")]
    Closed,
    /// No answer came in time.
    #[error("QEMU did not answer within {0:?}")]
    Late(Duration),
    /// A line is longer than any that QEMU sends.
    #[error("QEMU sent a line of more than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// The answer did not come within so many lines.
    #[error("QEMU sent {MAX_LINES} lines and no answer")]
    NoAnswer,
    /// A line is not what QMP says.
    #[error("QEMU sent something that is not QMP: {0}")]
    Garbage(String),
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {class}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of error.
        class: String,
        /// QEMU's words.
        description: String,
    },
}

/// One connection, past its greeting.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    next_id: u64,
    limit: Duration,
}

impl Qmp {
    /// Connects to a socket in a folder, reads the greeting and leaves the negotiation mode.
    pub(crate) async fn connect_in(folder: &Path, socket: &str) -> Result<Self, QmpError> {
        let connecting = timeout(ANSWER_LIMIT, connect_in(folder, socket)).await;
        let stream =
            connecting.map_err(|_| QmpError::Late(ANSWER_LIMIT))?.map_err(QmpError::Socket)?;
        Self::greet(stream, ANSWER_LIMIT).await
    }

    pub(crate) async fn greet(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self { stream: BufReader::new(stream), next_id: 0, limit };
        let greeting =
            timeout(limit, qmp.read_line()).await.map_err(|_| QmpError::Late(limit))??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Garbage(cut(&greeting.to_string())));
        }
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and gives back what it returns.
    pub(crate) async fn run(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let line = self.command_line(command, arguments);
        let limit = self.limit;
        let exchange = async {
            self.stream.get_mut().write_all(&line).await.map_err(socket_error)?;
            self.answer(command).await
        };
        timeout(limit, exchange).await.map_err(|_| QmpError::Late(limit))?
    }

    /// Runs a command whose answer is read into a type of the caller's.
    pub(crate) async fn ask<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, QmpError> {
        let answer = self.run(command, json!({})).await?;
        serde_json::from_value(answer).map_err(|e| QmpError::Garbage(format!("{command}: {e}")))
    }

    /// Hands an open file to QEMU, which knows it as `name` from then on (`getfd`).
    pub(crate) async fn give_fd(&mut self, name: &str, fd: impl AsFd) -> Result<(), QmpError> {
        let line = self.command_line("getfd", json!({ "fdname": name }));
        let limit = self.limit;
        let exchange = async {
            let stream = self.stream.get_mut();
            // The descriptor travels with the first byte; the rest of the line follows as text.
            let sent = stream
                .async_io(Interest::WRITABLE, || send_with_fd(stream, &line, fd.as_fd()))
                .await
                .map_err(socket_error)?;
            stream.write_all(&line[sent..]).await.map_err(socket_error)?;
            self.answer("getfd").await
        };
        timeout(limit, exchange).await.map_err(|_| QmpError::Late(limit))?.map(|_| ())
    }

    fn command_line(&mut self, command: &str, arguments: Value) -> Vec<u8> {
        self.next_id += 1;
        let command = json!({ "execute": command, "arguments": arguments, "id": self.next_id });
        let mut line = command.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// Reads on to the answer of the newest command; answers to others cannot be meant for us.
    async fn answer(&mut self, command: &str) -> Result<Value, QmpError> {
        for _ in 0..MAX_LINES {
            let mut line = self.read_line().await?;
            if line.get("id").and_then(Value::as_u64) != Some(self.next_id) {
                // An error without an id says that our own line could not be read.
                if line.get("event").is_none() && line.get("error").is_some() {
                    return Err(refusal(command, &line["error"]));
                }
                continue;
            }
            if let Some(error) = line.get("error") {
                return Err(refusal(command, error));
            }
            return match line.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(QmpError::Garbage(cut(&line.to_string()))),
            };
        }
        Err(QmpError::NoAnswer)
    }

    async fn read_line(&mut self) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_LINE_BYTES);
        limited.read_until(b'\n', &mut line).await.map_err(socket_error)?;
        if line.last() != Some(&b'\n') {
            let full = line.len() as u64 == MAX_LINE_BYTES;
            return Err(if full { QmpError::LineTooLong } else { QmpError::Closed });
        }
        serde_json::from_slice(&line)
            .map_err(|_| QmpError::Garbage(cut(&String::from_utf8_lossy(&line))))
    }
}

fn send_with_fd(stream: &UnixStream, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    assert!(fits, "the buffer has room for one descriptor");
    let sent = sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(sent)
}

/// A QEMU that ended shows as a reset or a broken pipe as well as an end of file.
fn socket_error(error: io::Error) -> QmpError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
        _ => QmpError::Socket(error),
    }
}

fn refusal(command: &str, error: &Value) -> QmpError {
    let text = |key: &str| cut(error.get(key).and_then(Value::as_str).unwrap_or("?"));
    QmpError::Refused {
        command: command.to_owned(),
        class: text("class"),
        description: text("desc"),
    }
}

fn cut(text: &str) -> String {
    text.trim().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
    const READY: &str = "{\"return\": {}, \"id\": 1}\n";
    const LIMIT: Duration = Duration::from_secs(10);

    /// A client past its greeting, and the server's end of its socket.
    async fn pair() -> (Qmp, UnixStream) {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(format!("{GREETING}{READY}").as_bytes()).await.unwrap();
        (Qmp::greet(client, LIMIT).await.unwrap(), server)
    }

    /// What a client makes of `answer` to its second command, before the server closes.
    async fn answered(answer: &[u8]) -> Result<Value, QmpError> {
        let (mut qmp, mut server) = pair().await;
        let answer = answer.to_vec();
        let serving = tokio::spawn(async move {
            // The client may turn away in mid-answer.
            let _ = server.write_all(&answer).await;
            let _ = server.shutdown().await;
            server
        });
        let result = qmp.run("query-status", json!({})).await;
        drop(qmp);
        serving.await.unwrap();
        result
    }

    #[tokio::test]
    async fn events_and_answers_to_others_are_read_past() {
        let answer = b"{\"event\": \"STOP\", \"timestamp\": {}}\n\
            {\"event\": \"FROM_THE_FUTURE\", \"data\": [1, {\"error\": 2}], \"id\": 9}\n\
            {\"return\": 1, \"id\": 1}\n{\"return\": 5}\n{\"return\": 2, \"id\": 2}\n";
        assert_eq!(answered(answer).await.unwrap(), json!(2));
    }

    #[tokio::test]
    async fn a_refusal_tells_the_command_and_the_servers_words() {
        let answer = b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n";
        let error = answered(answer).await.unwrap_err().to_string();
        assert_eq!(error, "QEMU refused query-status: GenericError: no");
    }

    #[tokio::test]
    async fn what_is_not_qmp_is_an_error_and_not_a_wait() {
        for garbage in [&b"\x00\xff\n"[..], b"\n", b"{\"id\": 2}\n"] {
            let error = answered(garbage).await.unwrap_err();
            assert!(matches!(error, QmpError::Garbage(_)), "{error:?}");
        }
        // Valid JSON that answers nothing is read past, until the server closes.
        assert!(matches!(answered(b"[1]\n17\n").await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_server_that_closes_in_mid_answer_is_told_from_one_that_answers() {
        for cut in [&b""[..], b"{\"return\": {}, \"id\": 2}", b"{\"ret"] {
            let error = answered(cut).await.unwrap_err();
            assert!(matches!(error, QmpError::Closed), "{error:?}");
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_given_up_at_its_limit() {
        let line = vec![b'['; MAX_LINE_BYTES as usize + 10];
        assert!(matches!(answered(&line).await, Err(QmpError::LineTooLong)));
    }

    #[tokio::test]
    async fn a_flood_of_events_is_given_up_at_its_limit() {
        let flood = b"{\"event\": \"X\"}\n".repeat(MAX_LINES + 1);
        assert!(matches!(answered(&flood).await, Err(QmpError::NoAnswer)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_in_time() {
        let (mut qmp, _server) = pair().await;
        assert!(matches!(qmp.run("stop", json!({})).await, Err(QmpError::Late(LIMIT))));
        let (client, _server) = UnixStream::pair().unwrap();
        assert!(matches!(Qmp::greet(client, LIMIT).await, Err(QmpError::Late(LIMIT))));
    }

    #[tokio::test]
    async fn a_server_of_another_kind_is_refused_at_its_greeting() {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"{\"SSH\": 2}\n").await.unwrap();
        assert!(matches!(Qmp::greet(client, LIMIT).await, Err(QmpError::Garbage(_))));
    }

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_command() {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        use std::io::{IoSliceMut, Read, Seek, Write};
        let (mut qmp, mut server) = pair().await;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"memory").unwrap();
        file.rewind().unwrap();
        let mut negotiation = [0; 200];
        let read = server.read(&mut negotiation).await.unwrap();
        assert!(String::from_utf8_lossy(&negotiation[..read]).contains("qmp_capabilities"));
        server.write_all(b"{\"return\": {}, \"id\": 2}\n").await.unwrap();
        qmp.give_fd("state", &file).await.unwrap();

        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut line = [0; 200];
        let message =
            recvmsg(&server, &mut [IoSliceMut::new(&mut line)], &mut ancillary, RecvFlags::empty())
                .unwrap();
        let command: Value = serde_json::from_slice(&line[..message.bytes]).unwrap();
        assert_eq!(command["execute"], "getfd");
        assert_eq!(command["arguments"]["fdname"], "state");
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let mut content = String::new();
        std::fs::File::from(fd.unwrap()).read_to_string(&mut content).unwrap();
        assert_eq!(content, "memory");
    }
}
