//! `/metrics` and `/healthz`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tracing::{error, info};

use super::health::HealthReport;

/// Content type of the OpenMetrics text format, 1.0.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Makes a report when asked.
pub type HealthSource = Arc<dyn Fn() -> HealthReport + Send + Sync>;

/// The routes. `/healthz` answers 503 while commits fail, since then nothing is stored, and 200 otherwise.
pub fn router(registry: Arc<Registry>, health: HealthSource) -> Router {
    Router::new()
        .route("/metrics", get(move || std::future::ready(metrics(&registry))))
        .route("/healthz", get(move || std::future::ready(healthz(&health()))))
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
