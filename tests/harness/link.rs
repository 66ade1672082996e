//! A network that fails: TCP connections over a link of ours, whose bytes stall, come late, or go with their connection.
//!
//! To both ends a link that stalls is what a partition is: nothing says that the other is gone, in one direction or both.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// What becomes of bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They arrive.
    Open,
    /// They arrive so much later.
    Slow(Duration),
    /// None arrives before the link is open again.
    Stalled,
}

/// Bytes that are on the way at a time.
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug)]
struct State {
    /// To the server, and back.
    flows: Mutex<[Flow; 2]>,
    changed: Condvar,
    /// Both ends of each connection there was.
    ends: Mutex<Vec<TcpStream>>,
}

/// Connections to a port of this machine by way of another; it is there until the process ends.
#[derive(Debug)]
pub struct Link {
    port: u16,
    state: Arc<State>,
}

impl Link {
    /// Takes connections on `port` and carries them to `server`.
    pub fn new(port: u16, server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is ours");
        let state = Arc::new(State {
            flows: Mutex::new([Flow::Open; 2]),
            changed: Condvar::new(),
            ends: Mutex::default(),
        });
        let carried = Arc::clone(&state);
        spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&carried);
                spawn(move || state.carry(&client, server));
            }
        });
        Self { port, state }
    }

    /// Where it takes connections, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What becomes of bytes to the server, and back.
    pub fn set(&self, forth: Flow, back: Flow) {
        *self.state.flows.lock().unwrap_or_else(PoisonError::into_inner) = [forth, back];
        self.state.changed.notify_all();
    }

    /// Closes every connection, and what is on its way is gone.
    pub fn cut(&self) {
        for end in self.state.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    /// Carries a connection until one of its ends is closed.
    fn carry(self: Arc<Self>, client: &TcpStream, server: u16) {
        // Where nothing passes, no connection is made.
        self.pass(0);
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { return };
        let clone = |end: &TcpStream| end.try_clone().expect("a descriptor is left");
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).extend([clone(client), clone(&server)]);
        let (state, from, to) = (Arc::clone(&self), clone(&server), clone(client));
        spawn(move || state.pump(1, from, to));
        self.pump(0, clone(client), server);
    }

    fn pump(&self, direction: usize, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            self.pass(direction);
            if to.write_all(&chunk[..read]).is_err() {
                break;
            }
        }
        for end in [from, to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Returns when bytes of a direction may pass.
    fn pass(&self, direction: usize) {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let stalls = |flows: &mut [Flow; 2]| flows[direction] == Flow::Stalled;
        let flow = self.changed.wait_while(flows, stalls).unwrap_or_else(PoisonError::into_inner)[direction];
        if let Flow::Slow(delay) = flow {
            sleep(delay);
        }
    }
}
