//! Requests that come again with their `Idempotency-Key`.

use super::{connections::*, *};
use crate::{
    log::Remembered,
    source::{
        http::keys::{Key, Keys, Seen},
        testing::{FakePipeline, on_one_thread, within},
    },
};

const PATH: &str = "/v1/streams/rooms/records";
const WITH_KEY: &str = "application/json\r\nIdempotency-Key: 7b1f";

/// Waits until `answer` is there.
async fn answered(answer: tokio::task::JoinHandle<Answer>) -> Answer {
    within("an answer", answer).await.expect("no panic")
}

#[test]
fn a_request_that_comes_again_is_answered_as_it_was_and_stored_once() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let first = post(address, PATH, WITH_KEY, OBJECT.as_bytes());
        let (ticket, _) = pipeline.record().await;
        // The client did not wait.
        let again = post(address, PATH, WITH_KEY, OBJECT.as_bytes());
        pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 2").await;
        assert!(!first.is_finished() && !again.is_finished());
        pipeline.acknowledge(ticket);
        let first = answered(first).await;
        assert_eq!((first.status, &first.json()["offsets"][0]["first"]), (200, &100.into()));
        assert_eq!(answered(again).await.body, first.body);
        let again = answered(post(address, PATH, WITH_KEY, OBJECT.as_bytes())).await;
        assert_eq!((again.status, again.body), (200, first.body));

        let other = answered(post(address, PATH, WITH_KEY, b"{\"device\":\"r2\"}")).await;
        assert_eq!(other.status, 422, "{other:?}");
        // A key is of its stream.
        let elsewhere = "/v1/streams/doors/records?device=d1";
        let (elsewhere, _) = stored(&mut pipeline, address, elsewhere, WITH_KEY, OBJECT.as_bytes()).await;
        assert_eq!(elsewhere.status, 200);
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn a_request_that_comes_again_after_a_crash_is_stored_once() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let unanswered = post(address, PATH, WITH_KEY, OBJECT.as_bytes());
        let _ = pipeline.record().await;
        pipeline.abort().await;
        drop(unanswered);

        let run = |context| run(config(address), RECORD_BYTES_MAX, context);
        // The commit was lost with the crash: what came again is stored.
        let mut lost = FakePipeline::start_again(INTAKE_BYTES, Remembered::new(), run);
        lost.state("it listens", |state| state.connected).await;
        assert_eq!(stored(&mut lost, address, PATH, WITH_KEY, OBJECT.as_bytes()).await.1.len(), 1);
        lost.abort().await;
        // It was not.
        let mut kept = FakePipeline::start_again(INTAKE_BYTES, pipeline.remembered.clone(), run);
        kept.state("it listens", |state| state.connected).await;
        let again = answered(post(address, PATH, WITH_KEY, OBJECT.as_bytes())).await;
        assert_eq!((again.status, again.body.as_str()), (200, "{\"records\":1}"));
        assert_eq!(kept.rest(), []);
    });
}

#[test]
fn the_oldest_keys_are_forgotten_for_new_ones_and_the_notes_follow() {
    let stream = StreamName::new("rooms").expect("a name");
    let (mut keys, mut remembered) = (Keys::default(), Remembered::new());
    let key = |n: usize| Key::new(&stream, format!("{n:036}").as_bytes());
    for n in 0..5_000 {
        for (key, value) in keys.begin(&key(n), b"body", &[PartitionId(3)]) {
            remembered.remove(&key);
            remembered.extend(value.map(|value| (key, value)));
        }
    }
    let known = remembered.len();
    assert!((1_500..2_500).contains(&known), "{known} UUIDs");
    let again = Keys::restore(&remembered);
    for n in [5_000 - known, 4_999] {
        assert_eq!(keys.look(&key(n), b"body"), Seen::UnderWay);
        let Seen::Stored(stored) = again.look(&key(n), b"body") else { panic!("{n} is not known") };
        assert_eq!(stored.partitions, [PartitionId(3)]);
        assert_eq!(again.look(&key(n), b"another"), Seen::Other);
    }
    assert_eq!(keys.look(&key(5_000 - known - 1), b"body"), Seen::New);
    assert_eq!(again.look(&key(5_000 - known - 1), b"body"), Seen::New);
    // Its own order goes on.
    let mut again = again;
    let gone = again.begin(&key(5_000), b"body", &[]).into_iter().filter(|(_, value)| value.is_none());
    assert_eq!(gone.count(), 1);
    assert_eq!(again.look(&key(5_000 - known), b"body"), Seen::New);
}
