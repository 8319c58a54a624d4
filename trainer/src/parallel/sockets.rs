//! Ranks that are connected by sockets: each to rank 0, which adds up and passes on.
//!
//! On the loopback interface a step's exchange is a copy in memory, so one place that adds in a fixed order is worth
//! more than a ring.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::AllReduce;
use crate::{Error, Result};

/// What a rank says first.
const GREETING: &[u8; 16] = b"nsparse ranks 1\n";
/// What rank 0 answers.
const WELCOME: u8 = b'+';
/// A connection that does not introduce itself for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Values that are converted at once.
const PIECE: usize = 1 << 16;

/// Where the other ranks come together: held by rank 0.
#[derive(Debug)]
pub struct Meeting {
    listener: TcpListener,
    invitation: Invitation,
}

/// What a rank has to know to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Where rank 0 listens.
    pub address: SocketAddr,
    /// 32 bytes in hex that only those who are invited know.
    pub token: String,
}

impl Meeting {
    /// Listens on a free port of the loopback interface, with a random token.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn open() -> Result<Self> {
        let failed = |e: std::io::Error| Error::lost(0, format!("no socket on the loopback interface: {e}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, invitation: Invitation { address, token: random_token() } })
    }

    /// What the others have to be told.
    pub fn invitation(&self) -> &Invitation {
        &self.invitation
    }

    /// Waits until ranks `1 .. size` are there. `still` is asked again and again; its error ends the waiting.
    /// Whoever does not know the token is not let in.
    ///
    /// # Errors
    /// That of `still`, or if a socket fails.
    pub fn wait(self, size: usize, mut still: impl FnMut() -> Result<()>) -> Result<Sockets> {
        let mut peers: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
        while peers.iter().any(Option::is_none) {
            still()?;
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Some((rank, stream)) = self.greet(stream)
                        && let Some(place) = rank.checked_sub(1).and_then(|r| peers.get_mut(r))
                        && place.is_none()
                    {
                        *place = Some(stream);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::park_timeout(Duration::from_millis(5)),
                Err(e) => return Err(Error::lost(0, format!("its socket takes no connection: {e}"))),
            }
        }
        let peers = peers.into_iter().flatten().enumerate().map(|(i, stream)| Peer { rank: i + 1, stream }).collect();
        Ok(Sockets { rank: 0, size, peers, calls: 0 })
    }

    /// The rank of a connection, or nothing if it is none of ours.
    fn greet(&self, mut stream: TcpStream) -> Option<(usize, TcpStream)> {
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut said = [0u8; GREETING.len() + 64 + 4];
        stream.read_exact(&mut said).ok()?;
        let (greeting, rest) = said.split_at(GREETING.len());
        let (token, rank) = rest.split_at(64);
        // Every byte is looked at, so that the time tells nothing.
        let differing = token.iter().zip(self.invitation.token.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        if greeting != GREETING || differing != 0 {
            return None;
        }
        stream.write_all(&[WELCOME]).ok()?;
        stream.set_read_timeout(None).ok()?;
        stream.set_nodelay(true).ok()?;
        Some((u32::from_le_bytes(rank.try_into().ok()?) as usize, stream))
    }
}

/// Joins as rank `rank` (at least 1) of `size`.
///
/// # Errors
/// If rank 0 does not answer or does not let this rank in.
pub fn join(invitation: &Invitation, rank: usize, size: usize) -> Result<Sockets> {
    let failed = |e: std::io::Error| Error::lost(0, format!("it does not answer at {}: {e}", invitation.address));
    let started = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(invitation.address) {
            Ok(stream) => break stream,
            Err(e) if e.kind() == ErrorKind::Interrupted && started.elapsed() < PATIENCE => {}
            Err(e) => return Err(failed(e)),
        }
    };
    stream.set_nodelay(true).map_err(failed)?;
    let mut said = GREETING.to_vec();
    said.extend_from_slice(invitation.token.as_bytes());
    said.extend_from_slice(&(rank as u32).to_le_bytes());
    stream.write_all(&said).map_err(failed)?;
    let mut answer = [0u8];
    stream.read_exact(&mut answer).map_err(failed)?;
    if answer[0] != WELCOME {
        return Err(Error::lost(0, "it does not speak as a rank 0 does".to_owned()));
    }
    Ok(Sockets { rank, size, peers: vec![Peer { rank: 0, stream }], calls: 0 })
}

/// 32 bytes in hex, from the keys that the system gives the standard library's hash maps.
fn random_token() -> String {
    use std::fmt::Write as _;
    use std::hash::{BuildHasher as _, RandomState};
    (0..4u64).fold(String::with_capacity(64), |mut out, i| {
        // Writing to a string does not fail.
        let _ = write!(out, "{:016x}", RandomState::new().hash_one((i, std::process::id())));
        out
    })
}

/// One connection.
#[derive(Debug)]
struct Peer {
    rank: usize,
    stream: TcpStream,
}

/// What a message is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Sum = 1,
    Gather = 2,
    Broadcast = 3,
}

impl Peer {
    fn gone(&self, e: &std::io::Error) -> Error {
        let what = match e.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "its connection is closed".to_owned()
            }
            _ => format!("its connection fails: {e}"),
        };
        Error::lost(self.rank, what)
    }

    /// A message begins: its kind, the number of the call, the bytes that follow.
    fn announce(&mut self, kind: Kind, call: u64, bytes: usize) -> Result<()> {
        let mut head = [0u8; 17];
        head[0] = kind as u8;
        head[1..9].copy_from_slice(&call.to_le_bytes());
        head[9..].copy_from_slice(&(bytes as u64).to_le_bytes());
        self.write(&head)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|e| self.gone(&e))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream.read_exact(bytes).map_err(|e| self.gone(&e))
    }

    /// Reads the beginning of a message; how many bytes follow.
    fn expect(&mut self, kind: Kind, call: u64) -> Result<usize> {
        let mut head = [0u8; 17];
        self.read(&mut head)?;
        let number = |from: usize| {
            let mut raw = [0u8; 8];
            raw.copy_from_slice(&head[from..from + 8]);
            u64::from_le_bytes(raw)
        };
        if head[0] != kind as u8 || number(1) != call {
            let (there, at) = (head[0], number(1));
            return Err(Error::out_of_step(
                self.rank,
                &format!("it is at call {at} of kind {there}, this one at call {call} of kind {}", kind as u8),
            ));
        }
        Ok(number(9) as usize)
    }

    fn send(&mut self, kind: Kind, call: u64, bytes: &[u8]) -> Result<()> {
        self.announce(kind, call, bytes.len())?;
        self.write(bytes)
    }

    fn receive(&mut self, kind: Kind, call: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.expect(kind, call)?];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn send_values(&mut self, call: u64, values: &[f32]) -> Result<()> {
        self.announce(Kind::Sum, call, 4 * values.len())?;
        let mut raw = Vec::with_capacity(4 * PIECE);
        for piece in values.chunks(PIECE) {
            raw.clear();
            raw.extend(piece.iter().flat_map(|v| v.to_le_bytes()));
            self.write(&raw)?;
        }
        Ok(())
    }

    /// Reads as many values as there are and puts each into its place through `take`.
    fn receive_values(&mut self, call: u64, values: &mut [f32], take: impl Fn(&mut f32, f32)) -> Result<()> {
        let bytes = self.expect(Kind::Sum, call)?;
        if bytes != 4 * values.len() {
            return Err(Error::out_of_step(self.rank, "it sums another number of values"));
        }
        let mut raw = vec![0u8; 4 * PIECE.min(values.len())];
        for piece in values.chunks_mut(PIECE) {
            let raw = &mut raw[..4 * piece.len()];
            self.read(raw)?;
            for (value, b) in piece.iter_mut().zip(raw.chunks_exact(4)) {
                take(value, f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
        }
        Ok(())
    }
}

/// One rank's connections: rank 0 has one to each other, every other one to rank 0.
#[derive(Debug)]
pub struct Sockets {
    rank: usize,
    size: usize,
    peers: Vec<Peer>,
    /// Calls so far: a rank that is elsewhere is noticed.
    calls: u64,
}

impl Sockets {
    fn next_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    /// A link on which a call failed is of no use: closed, so that the others do not wait for it.
    fn closed_on_error<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            for peer in &self.peers {
                // It may be closed already.
                let _ = peer.stream.shutdown(Shutdown::Both);
            }
        }
        result
    }

    fn try_sum(&mut self, values: &mut [f32]) -> Result<()> {
        let call = self.next_call();
        if self.rank == 0 {
            for peer in &mut self.peers {
                peer.receive_values(call, values, |sum, v| *sum += v)?;
            }
            for peer in &mut self.peers {
                peer.send_values(call, values)?;
            }
        } else {
            for peer in &mut self.peers {
                peer.send_values(call, values)?;
                peer.receive_values(call, values, |value, v| *value = v)?;
            }
        }
        Ok(())
    }

    fn try_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (call, size) = (self.next_call(), self.size);
        let mut all = Vec::with_capacity(size);
        if self.rank == 0 {
            all.push(own.to_vec());
            for peer in &mut self.peers {
                all.push(peer.receive(Kind::Gather, call)?);
            }
            for peer in &mut self.peers {
                for bytes in &all {
                    peer.send(Kind::Gather, call, bytes)?;
                }
            }
        } else {
            for peer in &mut self.peers {
                peer.send(Kind::Gather, call, own)?;
                for _ in 0..size {
                    all.push(peer.receive(Kind::Gather, call)?);
                }
            }
        }
        Ok(all)
    }

    fn try_broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let call = self.next_call();
        for peer in &mut self.peers {
            if self.rank == 0 {
                peer.send(Kind::Broadcast, call, bytes)?;
            } else {
                *bytes = peer.receive(Kind::Broadcast, call)?;
            }
        }
        Ok(())
    }
}

impl AllReduce for Sockets {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        let done = self.try_sum(values);
        self.closed_on_error(done)
    }

    fn gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let done = self.try_gather(own);
        self.closed_on_error(done)
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let done = self.try_broadcast(bytes);
        self.closed_on_error(done)
    }
}
