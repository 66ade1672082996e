//! Which sockets can be read or written, for one task that owns thousands of them: each has a waker of its own, which notes its
//! key. Nothing is held per idle connection but that.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use tokio::sync::Notify;

use super::broker::ConnectionKey;

/// The keys whose wakers were woken.
#[derive(Debug, Default)]
pub(super) struct Ready {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    // A push or a swap, never across an await.
    keys: Mutex<Vec<ConnectionKey>>,
    some: Notify,
}

/// Notes its key when it is woken.
#[derive(Debug)]
pub(super) struct KeyWaker {
    key: ConnectionKey,
    /// Noted, and not taken yet.
    noted: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for KeyWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner).push(self.key);
            self.shared.some.notify_one();
        }
    }
}

impl KeyWaker {
    /// Its key was taken: the next wake counts again. To be called before the socket is polled.
    pub(super) fn rearm(self: &Arc<Self>) -> Waker {
        self.noted.store(false, Ordering::Release);
        Waker::from(Arc::clone(self))
    }
}

impl Ready {
    /// A waker for the socket `key`.
    pub(super) fn waker(&self, key: ConnectionKey) -> Arc<KeyWaker> {
        Arc::new(KeyWaker { key, noted: AtomicBool::new(false), shared: Arc::clone(&self.shared) })
    }

    /// Waits until a waker was woken. Cancel-safe; may return though all keys were taken.
    pub(super) async fn wait(&self) {
        self.shared.some.notified().await;
    }

    /// Lets the next [`wait`](Self::wait) return: there is something to do though no waker was woken.
    pub(super) fn again(&self) {
        self.shared.some.notify_one();
    }

    /// Takes the keys, in the order of their wakes, into the empty `keys`.
    pub(super) fn take(&self, keys: &mut Vec<ConnectionKey>) {
        std::mem::swap(keys, &mut self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_noted_once_until_it_is_taken_and_armed_again() {
        let ready = Ready::default();
        let (one, two) = (ready.waker(1), ready.waker(2));
        let mut keys = Vec::new();
        for waker in [&two, &one, &two] {
            waker.wake_by_ref();
        }
        ready.take(&mut keys);
        assert_eq!(keys, [2, 1]);
        keys.clear();
        one.wake_by_ref();
        ready.take(&mut keys);
        assert_eq!(keys, [0; 0], "not armed");
        one.rearm().wake();
        ready.take(&mut keys);
        assert_eq!(keys, [1]);
    }
}
