//! `/metrics` and `/healthz`: for everybody who reaches them, or for those who know the token.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use subtle::ConstantTimeEq as _;
use tokio::{net::TcpListener, sync::watch};
use tracing::{error, info};

use super::health::HealthReport;
use crate::secret::{Secret, SecretRef, Unreadable};

/// Content type of the OpenMetrics text format, 1.0.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Makes a report when asked.
pub type HealthSource = Arc<dyn Fn() -> HealthReport + Send + Sync>;

/// The token at `place` as it is now.
///
/// # Errors
/// [`Unreadable`]; also where no header can carry it, so that no request could ever match.
pub fn load_token(place: &SecretRef) -> Result<Secret, Unreadable> {
    let token = place.load()?;
    if token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(token)
    } else {
        Err(place.unusable("has other characters than ASCII letters, digits and punctuation"))
    }
}

/// Lets through who sends the token: `Authorization: Bearer TOKEN` (RFC 6750). It is read for each request, so that a new
/// one holds at once.
#[derive(Debug)]
pub struct Guard {
    token: SecretRef,
    refused: Counter,
    /// Why the token could not be read, as the log has it: told once. Locked for a comparison alone.
    told: Mutex<Option<Unreadable>>,
}

impl Guard {
    /// A guard that wants the token at `token`, with its metric in `registry`. Logs if it cannot be read.
    pub fn register(token: SecretRef, registry: &mut Registry) -> Self {
        let guard = Self { token, refused: Counter::default(), told: Mutex::new(None) };
        registry.register(
            "telemetry_refused",
            "Requests to the HTTP endpoint without the right token",
            guard.refused.clone(),
        );
        let _ = guard.load();
        guard
    }

    fn load(&self) -> Option<Secret> {
        let (token, trouble) = match load_token(&self.token) {
            Ok(token) => (Some(token), None),
            Err(cause) => (None, Some(cause)),
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &trouble
            && *told != trouble
        {
            error!(%cause, "no metrics and health: nobody can know the token");
        }
        *told = trouble;
        token
    }

    /// The answer to a request that must not pass.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        let Some(token) = self.load() else {
            let words = "the agent cannot read telemetry.token; its log says why\n";
            return Some((StatusCode::INTERNAL_SERVER_ERROR, words).into_response());
        };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        // Of what takes longer or shorter a stranger learns the token's length and no more.
        if shown.is_some_and(|shown| shown.ct_eq(token.expose().as_bytes()).into()) {
            return None;
        }
        self.refused.inc();
        let words = "send the token: `Authorization: Bearer TOKEN`\n";
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], words).into_response())
    }
}

/// The token in the value of an `Authorization` header. The scheme's name is the same in capitals (RFC 9110).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// The routes, behind `guard` if there is one. `/healthz` answers 503 while commits fail, since then nothing is stored,
/// and 200 otherwise.
pub fn router(registry: Arc<Registry>, health: HealthSource, guard: Option<Guard>) -> Router {
    let routes = Router::new()
        .route("/metrics", get(move || std::future::ready(metrics(&registry))))
        .route("/healthz", get(move || std::future::ready(healthz(&health()))));
    let Some(guard) = guard.map(Arc::new) else { return routes };
    routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let guard = Arc::clone(&guard);
        async move {
            match guard.refusal(request.headers()) {
                None => next.run(request).await,
                Some(refusal) => refusal,
            }
        }
    }))
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(cause) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()).into_response(),
    }
}

fn healthz(report: &HealthReport) -> Response {
    let code = if report.commit.failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(report)).into_response()
}

/// Serves until `shutdown` turns true. A port that cannot be had is logged; the agent runs without.
pub async fn serve(listen: SocketAddr, router: Router, mut shutdown: watch::Receiver<bool>) {
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(cause) => {
            error!(%listen, %cause, "no metrics and health: cannot listen (telemetry.listen)");
            return;
        }
    };
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving /metrics and /healthz");
    }
    let stopped = async move {
        // The sender is gone only when the agent is.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    if let Err(cause) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        error!(%cause, "metrics and health ended");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::telemetry::health::tests::good;

    const TOKEN: &str = "correct-horse/battery+staple==";

    /// Serves on a free port of loopback, with a guard or without.
    async fn endpoint(token: Option<SecretRef>) -> (SocketAddr, Arc<Registry>) {
        let mut registry = Registry::default();
        let guard = token.map(|token| Guard::register(token, &mut registry));
        let registry = Arc::new(registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = router(Arc::clone(&registry), Arc::new(good), guard);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (address, registry)
    }

    /// Status and text of the answer to `GET path` with a further line in its head.
    async fn get(address: SocketAddr, path: &str, line: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.0\r\n{line}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers in text");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("HTTP");
        (status, answer)
    }

    fn authorization(value: &str) -> String {
        format!("Authorization: {value}\r\n")
    }

    #[tokio::test]
    async fn without_a_token_everybody_on_this_machine_may_ask() {
        let (address, _) = endpoint(None).await;
        assert_eq!(get(address, "/metrics", "").await.0, 200);
        assert_eq!(get(address, "/healthz", "").await.0, 200);
    }

    #[tokio::test]
    async fn who_does_not_send_the_token_learns_nothing_and_is_counted() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), format!("{TOKEN}\n")).expect("written");
        let place = SecretRef::parse("telemetry.token", &format!("file:{}", file.path().display()));
        let (address, registry) = endpoint(place).await;
        let wrong = [
            String::new(),
            authorization("Bearer"),
            authorization("Bearer "),
            authorization("Bearer wrong"),
            authorization(&format!("Bearer {TOKEN}x")),
            authorization(&format!("Bearer {}", &TOKEN[1..])),
            authorization(&format!("Bearer {}", &TOKEN[..7])),
            authorization(&format!("Basic {TOKEN}")),
            authorization(TOKEN),
        ];
        for line in &wrong {
            for path in ["/metrics", "/healthz", "/nothing"] {
                let (status, answer) = get(address, path, line).await;
                assert_eq!(status, 401, "{path} {line}");
                assert!(answer.to_lowercase().contains("www-authenticate: bearer\r\n"), "{answer}");
                assert!(!answer.contains(TOKEN) && !answer.contains("uptime"), "{answer}");
            }
        }
        for value in [format!("Bearer {TOKEN}"), format!("bearer {TOKEN}")] {
            assert_eq!(get(address, "/metrics", &authorization(&value)).await.0, 200);
            assert_eq!(get(address, "/healthz", &authorization(&value)).await.0, 200);
            assert_eq!(get(address, "/nothing", &authorization(&value)).await.0, 404);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes all");
        assert!(text.contains(&format!("telemetry_refused_total {}\n", 3 * wrong.len())), "{text}");
    }

    #[tokio::test]
    async fn a_new_token_holds_at_once_and_one_that_cannot_be_read_lets_nobody_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let place = SecretRef::parse("telemetry.token", &format!("file:{}", path.display()));
        let (address, _) = endpoint(place).await;
        let status =
            async |token: &str| get(address, "/healthz", &authorization(&format!("Bearer {token}"))).await.0;
        assert_eq!(status("").await, 500, "there is no token");
        for token in ["old", "new"] {
            fs::write(&path, token).expect("written");
            assert_eq!(status(token).await, 200);
        }
        assert_eq!(status("old").await, 401);
        fs::write(&path, "two words").expect("written");
        assert_eq!(status("two words").await, 500);
    }
}
