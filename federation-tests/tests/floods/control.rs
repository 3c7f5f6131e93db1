//! Floods of the control port: by a peer, and by whoever is none.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use federation_tests::process::SOON;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::frames::{
    CONTINUATION, Caller, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, RESET,
    SETTINGS, WINDOW_UPDATE, Writer, address, connect, drain, frame, headers, streams,
};
use crate::ground::{Ground, Over, SPARE_FILES, alone};

/// Connections at once of one flood of frames.
const CONNECTIONS: usize = 4;
/// Frames that are written at once.
const BATCH: usize = 64;
/// Connections at once of floods that open many: more than a node has places for.
const CROWD: usize = 2_000;
/// A method that takes a sealed request.
const METHOD: &str = "MigrationRequest";

/// A flood by a peer over a few connections, each made again at once when it is closed. `say`
/// writes on one until that is so, and counts what it says.
fn by_peer(
    ground: &Ground,
    over: &Over,
    connections: usize,
    say: impl AsyncFn(Writer, &Cell<usize>) -> io::Result<()>,
) -> String {
    let caller = Caller::new(&ground.f, ground.v());
    let (said, called) = (Cell::new(0), Cell::new(0));
    let one = async |number: usize| {
        loop {
            if let Ok(writer) = caller.greet(address(number)).await {
                called.set(called.get() + 1);
                over.begins();
                let _ = say(writer, &said).await;
            }
            // Whoever is hung up on at once leaves others of this thread their turn.
            tokio::task::yield_now().await;
        }
    };
    over.storm(async {
        let all = (0..connections).map(one);
        join_all(all).await;
    });
    format!("{} on {} connections", said.get(), called.get())
}

/// Says the same again and again, on connections that began with this.
fn by_frame(ground: &Ground, over: &Over, first: &[u8], frame: &[u8]) -> String {
    let batch = frame.repeat(BATCH);
    by_peer(ground, over, CONNECTIONS, async |mut writer, said| {
        writer.write_all(first).await?;
        loop {
            writer.write_all(&batch).await?;
            writer.flush().await?;
            said.set(said.get() + BATCH);
        }
    })
}

#[test]
fn a_peer_that_resets_its_requests_rapidly_costs_another_peer_nothing() {
    let _alone = alone();
    let ground = Ground::set();
    ground.bears("rapid reset", |over| {
        by_peer(&ground, over, CONNECTIONS, async |mut writer, said| {
            let mut streams = streams();
            loop {
                let pair = |stream| {
                    let opened = frame(HEADERS, END_HEADERS, stream, &headers(METHOD));
                    [opened, frame(RESET, 0, stream, &8_u32.to_be_bytes())].concat()
                };
                let batch: Vec<u8> = streams.by_ref().take(BATCH).flat_map(pair).collect();
                writer.write_all(&batch).await?;
                writer.flush().await?;
                said.set(said.get() + BATCH);
            }
        })
    });
}

#[test]
fn requests_that_a_peer_begins_and_never_ends_cost_another_peer_nothing() {
    let _alone = alone();
    let ground = Ground::set();
    // Of each the largest part that is no whole request yet, as gRPC says its length.
    let part = {
        let length = 1_u32 << 20;
        let mut part = [&[0][..], &length.to_be_bytes()].concat();
        part.resize(16 << 10, 0);
        part
    };
    ground.bears("streams left open", |over| {
        by_peer(&ground, over, CROWD / 50, async |mut writer, said| {
            for stream in streams() {
                let opened = frame(HEADERS, END_HEADERS, stream, &headers(METHOD));
                writer.write_all(&opened).await?;
                writer.write_all(&frame(DATA, 0, stream, &part)).await?;
                writer.flush().await?;
                said.set(said.get() + 1);
            }
            Ok(())
        })
    });
}

#[test]
fn connections_whose_answers_a_peer_does_not_read_end_when_it_makes_others() {
    /// Of one peer.
    const PLACES: usize = 8;
    const WAVES: usize = 3;
    /// What is not written for so long waits for what is not read.
    const BLOCKED: Duration = Duration::from_secs(2);
    let _alone = alone();
    let ground = Ground::set();
    let caller = Caller::new(&ground.f, ground.v());
    let before = ground.v().descriptors();
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(BATCH);
    let deaf = async |number: usize| {
        let (reader, mut writer) = caller.call_deaf(address(number)).await.unwrap();
        // A request that begins, so that it is not ended for want of one.
        let request = frame(HEADERS, END_HEADERS, 1, &headers(METHOD));
        let mut words = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &request].concat();
        while timeout(BLOCKED, async {
            writer.write_all(&words).await?;
            writer.flush().await
        })
        .await
        .is_ok_and(|written| written.is_ok())
        {
            words.clone_from(&pings);
        }
        (reader, writer)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut held = vec![];
    for wave in 0..WAVES {
        let all = (0..PLACES).map(|number| deaf(PLACES * wave + number));
        held.extend(runtime.block_on(join_all(all)));
    }
    ground.federation.wait_for("they are hung up on", SOON, || {
        let left = ground.v().descriptors();
        let is_so = left <= before + PLACES + SPARE_FILES;
        if is_so { Ok(()) } else { Err(format!("{left} descriptors, and {before} before")) }
    });
    assert_eq!(held.len(), WAVES * PLACES, "they were there all the time");
}

#[test]
fn a_peer_that_says_its_headers_slowly_costs_another_peer_nothing() {
    let _alone = alone();
    let ground = Ground::set();
    let caller = Caller::new(&ground.f, ground.v());
    // One says nothing once TLS is done; one says the preface a byte at a time, one its headers.
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let open = frame(HEADERS, 0, 1, &headers(METHOD)[..4]);
    let piece = frame(CONTINUATION, 0, 1, &headers(METHOD)[4..5]);
    let slow = async |number: usize, count: &Cell<usize>, over: &Over| {
        loop {
            let called = caller.call(address(number)).await;
            let Ok((reader, mut writer)) = called else { continue };
            count.set(count.get() + 1);
            if count.get() == CROWD / 20 {
                over.begins();
            }
            let closed = drain(reader);
            let speak = async {
                let words = match number % 3 {
                    0 => vec![],
                    1 => PREFACE.chunks(1).map(<[u8]>::to_vec).collect(),
                    _ => [vec![begun.clone(), open.clone()], vec![piece.clone(); 1000]].concat(),
                };
                for word in words {
                    writer.write_all(&word).await?;
                    writer.flush().await?;
                    sleep(Duration::from_millis(500)).await;
                }
                std::future::pending::<io::Result<()>>().await
            };
            tokio::select! {
                () = closed => {}
                _ = speak => {}
            }
        }
    };
    ground.bears("slow headers", |over| {
        let count = Cell::new(0);
        over.storm(async {
            join_all((0..CROWD / 20).map(|number| slow(number, &count, over))).await;
        });
        format!("{} connections", count.get())
    });
}

#[test]
fn headers_without_end_and_frames_that_say_nothing_cost_another_peer_nothing() {
    let _alone = alone();
    let ground = Ground::set();
    let opened = frame(HEADERS, END_HEADERS, 1, &headers(METHOD));
    let endless = frame(HEADERS, 0, 1, &headers(METHOD));
    let frames = [
        // Empty ones: they never become too much.
        ("CONTINUATION", &endless, frame(CONTINUATION, 0, 1, &[])),
        ("PING", &opened, frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", &opened, frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("WINDOW_UPDATE", &opened, frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("empty DATA", &opened, frame(DATA, 0, 1, &[])),
        ("PRIORITY", &opened, frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("of no kind", &opened, frame(99, 0, 0, &[])),
    ];
    for (name, first, frame) in &frames {
        ground.bears(name, |over| by_frame(&ground, over, first, frame));
    }
}

#[test]
fn a_peer_that_asks_as_fast_as_it_can_costs_another_peer_nothing() {
    let _alone = alone();
    let ground = Ground::set();
    // A sealed request that is none.
    let (head, body) = (headers(METHOD), frame(DATA, END_STREAM, 0, &[0, 0, 0, 0, 0]));
    ground.bears("requests", |over| {
        by_peer(&ground, over, CONNECTIONS, async |mut writer, said| {
            let mut streams = streams();
            loop {
                let ask = |stream: u32| {
                    let mut body = body.clone();
                    body[5..9].copy_from_slice(&stream.to_be_bytes());
                    [frame(HEADERS, END_HEADERS, stream, &head), body].concat()
                };
                let batch: Vec<u8> = streams.by_ref().take(BATCH).flat_map(ask).collect();
                writer.write_all(&batch).await?;
                writer.flush().await?;
                said.set(said.get() + BATCH);
            }
        })
    });
}

/// Callers from many addresses, who say this and then nothing, and call again when they are hung
/// up on.
pub(crate) fn crowd(ground: &Ground, over: &Over, word: &[u8]) -> String {
    let (called, closed) = (Cell::new(0), Cell::new(0));
    let one = async |number: usize| {
        // Not all at once: what does not fit into the system's own queue never gets to the node.
        sleep(Duration::from_micros(200) * u32::try_from(number).unwrap()).await;
        loop {
            if let Ok(mut tcp) = connect(address(number), ground.v().address()).await {
                called.set(called.get() + 1);
                let _ = tcp.write_all(word).await;
                if called.get() >= 2 * CROWD {
                    over.begins();
                }
                // Whatever is answered, nothing more is said.
                let mut answer = [0; 4096];
                while tcp.read(&mut answer).await.is_ok_and(|count| count > 0) {}
                closed.set(closed.get() + 1);
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    over.storm(async {
        join_all((0..CROWD).map(one)).await;
    });
    format!("{} connections, {} closed", called.get(), closed.get())
}

#[test]
fn callers_that_never_finish_do_not_keep_a_peer_out() {
    let _alone = alone();
    let ground = Ground::set();
    let hello = Caller::new(&ground.f, ground.v()).hello();
    ground.bears("silence", |over| crowd(&ground, over, &[]));
    ground.bears("half a ClientHello", |over| crowd(&ground, over, &hello[..hello.len() / 2]));
}

#[test]
fn callers_that_begin_a_handshake_and_leave_it_do_not_keep_a_peer_out() {
    let _alone = alone();
    let ground = Ground::set();
    let hello = Caller::new(&ground.f, ground.v()).hello();
    ground.bears_crowd("a whole ClientHello", |over| crowd(&ground, over, &hello));
}
