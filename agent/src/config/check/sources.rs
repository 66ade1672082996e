//! The checks of `[[source.*]]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio_rustls::rustls::pki_types::ServerName;

use super::{Checker, each, file, quoted, size};
use crate::{
    config::{
        Anonymous, Broker, CertificateUser, DeviceFrom, FlowControl, HttpRoute, HttpSource, Listener, Login,
        MqttSource, MqttTls, MqttVersion, PARTITIONS_DEFAULT, Qos, Route, RouteDecode, SerialProtocol,
        SerialSource, ServerTls, Stream, Value,
        raw::{
            Decode, Protocol, RawHttpRoute, RawHttpSource, RawListener, RawMqttSource, RawMqttTls, RawRoute,
            RawSerialSource, RawServerTls,
        },
    },
    decode::topic::TopicPattern,
    record::{DeviceId, StreamName},
};

impl Checker {
    /// No two sources may want what only one of them can have.
    pub(super) fn sources_apart(
        &mut self,
        mqtt: &[MqttSource],
        listener: &[Option<Listener>],
        serial: &[SerialSource],
    ) {
        let mut addresses = BTreeMap::new();
        for (i, source) in listener.iter().enumerate() {
            let Some(source) = source else { continue };
            if let Some(first) = addresses.insert(source.listen, i) {
                let limit = format!("already the address of source.listener[{first}]");
                let address = quoted(&source.listen.to_string());
                self.fault(&format!("source.listener[{i}].listen"), &address, &limit);
            }
        }
        let mut ports = BTreeMap::new();
        for (i, source) in serial.iter().enumerate() {
            if let Some(first) = ports.insert(&source.path, i) {
                let limit =
                    format!("already read by source.serial[{first}]: each would get half of the bytes");
                let path = quoted(&source.path.to_string_lossy());
                self.fault(&format!("source.serial[{i}].path"), &path, &limit);
            }
        }
        let mut clients = BTreeMap::new();
        for (i, source) in mqtt.iter().enumerate() {
            let others = source
                .brokers
                .iter()
                .filter_map(|broker| clients.insert((&broker.host, broker.port, &source.client_id), i));
            if let Some(first) = others.filter(|first| *first != i).min() {
                let limit = format!(
                    "already used by source.mqtt[{first}] at the same broker, where each would throw the other out: \
                     leave it out"
                );
                self.fault(&format!("source.mqtt[{i}].client_id"), &quoted(&source.client_id), &limit);
            }
        }
    }

    pub(super) fn mqtt(&mut self, key: &str, raw: &RawMqttSource, gateway_id: &str) -> MqttSource {
        let at = |name: &str| format!("{key}.{name}");
        if raw.urls.is_empty() {
            self.fault(&at("urls"), "[]", "at least one broker, mqtt://host:port or mqtts://host:port");
        }
        if raw.route.is_empty() {
            self.fault(&at("route"), "[]", "at least one [[source.mqtt.route]]");
        }
        let client_id = match raw.client_id.as_str() {
            "" => format!("wayside-{gateway_id}-{}", raw.name),
            id => id.to_owned(),
        };
        let brokers: Vec<_> =
            each(&raw.urls, &at("urls"), |key, url| self.broker(&key, url)).into_iter().flatten().collect();
        if raw.tls != RawMqttTls::default() && !brokers.iter().any(|broker| broker.tls) {
            self.fault(&at("tls"), "{..}", "is used with mqtts:// alone, and no URL has it");
        }
        MqttSource {
            name: raw.name.clone(),
            brokers,
            login: self.login(&at("user"), &at("password"), &raw.user, &raw.password),
            tls: self.mqtt_tls(&at("tls"), &raw.tls),
            version: if raw.version == 3 { MqttVersion::V3 } else { MqttVersion::V5 },
            client_id,
            qos: match raw.qos {
                0 => Qos::AtMostOnce,
                1 => Qos::AtLeastOnce,
                _ => Qos::ExactlyOnce,
            },
            keep_alive: Duration::from_secs(raw.keep_alive_s.into()),
            session_expiry_s: raw.session_expiry_s,
            receive_maximum: raw.receive_maximum,
            max_packet_bytes: raw.max_packet_bytes,
            reconnect: self.backoff(
                (&at("reconnect_min_ms"), raw.reconnect_min_ms),
                (&at("reconnect_max_ms"), raw.reconnect_max_ms),
            ),
            routes: each(&raw.route, &at("route"), |key, route| self.route(&key, route))
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// `tells_drops` says whether a stream drops the newest.
    pub(super) fn listener(&mut self, key: &str, raw: &RawListener, tells_drops: bool) -> Option<Listener> {
        let at = |name: &str| format!("{key}.{name}");
        if raw.route.is_empty() {
            self.fault(&at("route"), "[]", "at least one [[source.listener.route]]");
        }
        for (i, filter) in raw.local_topic_filters.iter().enumerate() {
            self.topic_filter(&at(&format!("local_topic_filters[{i}]")), filter);
        }
        let routes = each(&raw.route, &at("route"), |key, route| self.route(&key, route));
        let password_file = file(&at("password_file"), &raw.password_file);
        let tls = self.server_tls(&at("tls"), &raw.tls);
        let has_certificate_user = raw.certificate_user != CertificateUser::None;
        if has_certificate_user && tls.as_ref().is_none_or(|tls| tls.client_ca_file.is_none()) {
            let limit = "must be set with certificate_user";
            self.fault(&at("tls.client_ca_file"), &quoted(&raw.tls.client_ca_file), limit);
        }
        if has_certificate_user && password_file.is_some() {
            let limit = "not with certificate_user: nobody would be asked for a password";
            self.fault(&at("password_file"), &quoted(&raw.password_file), limit);
        }
        if raw.anonymous == Anonymous::Nowhere && password_file.is_none() && !has_certificate_user {
            let limit = "must be set with anonymous = \"nowhere\": nobody could connect";
            self.fault(&at("password_file"), "\"\"", limit);
        }
        let limit = "must be an address and port, like 0.0.0.0:1883 or [::]:1883";
        Some(Listener {
            name: raw.name.clone(),
            listen: self.parse(&at("listen"), &raw.listen, limit)?,
            anonymous: raw.anonymous,
            password_file,
            acl_file: file(&at("acl_file"), &raw.acl_file),
            tls,
            certificate_user: raw.certificate_user,
            max_connections: size(raw.max_connections.into()),
            connect_timeout: Duration::from_millis(raw.connect_timeout_ms),
            max_half_open: size(raw.max_half_open.into()),
            connects_per_second: raw.connects_per_second,
            max_packet_bytes: size(raw.max_packet_bytes.into()),
            receive_maximum: raw.receive_maximum,
            reject_invalid: raw.reject_invalid,
            tells_drops,
            keep_alive_max_s: raw.keep_alive_max_s,
            session_expiry_max: Duration::from_secs(raw.session_expiry_max_s.into()),
            client_bytes_per_second: raw.client_bytes_per_second,
            client_messages_per_second: raw.client_messages_per_second,
            queue_bytes: size(raw.queue_bytes.into()),
            retained_bytes: size(raw.retained_bytes.into()),
            local_topic_filters: raw.local_topic_filters.clone(),
            routes: routes.into_iter().flatten().collect(),
        })
    }

    fn server_tls(&mut self, key: &str, raw: &RawServerTls) -> Option<ServerTls> {
        let client_ca_file = file(&format!("{key}.client_ca_file"), &raw.client_ca_file);
        let certificate = self.certificate(key, &raw.cert_file, &raw.key);
        if client_ca_file.is_some() && raw.cert_file.is_empty() && raw.key.is_empty() {
            self.fault(&format!("{key}.cert_file"), "\"\"", "must be set with client_ca_file");
        }
        Some(ServerTls { certificate: certificate?, client_ca_file })
    }

    fn topic_filter(&mut self, key: &str, filter: &str) {
        if !rumqttc::valid_filter(filter) {
            self.fault(key, &quoted(filter), "must be an MQTT topic filter");
        }
    }

    fn broker(&mut self, key: &str, url: &str) -> Option<Broker> {
        if url.contains('@') {
            self.fault(key, "(not shown)", "must not hold a user: it goes to user and password");
            return None;
        }
        let (tls, address) = match (url.strip_prefix("mqtts://"), url.strip_prefix("mqtt://")) {
            (Some(address), _) => (true, Some(address)),
            (None, address) => (false, address),
        };
        let address = address.map(|rest| rest.trim_end_matches('/'));
        // The port is behind the last colon, but an IPv6 address has colons of its own, inside brackets.
        let broker = address.and_then(|address| match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => port.parse().ok().map(|port| (host, port)),
            _ => Some((address, if tls { 8883 } else { 1883 })),
        });
        match broker {
            Some((host, port)) if !host.is_empty() => {
                Some(Broker { host: host.trim_start_matches('[').trim_end_matches(']').into(), port, tls })
            }
            _ => {
                self.fault(
                    key,
                    &quoted(url),
                    "must be mqtt://host:port or mqtts://host:port; the port may be left out",
                );
                None
            }
        }
    }

    fn login(&mut self, user_at: &str, password_at: &str, user: &str, password: &str) -> Option<Login> {
        let password = self.secret(password_at, password);
        if user.is_empty() && password.is_some() {
            self.fault(user_at, "\"\"", "must be set with password");
        }
        if user.len() > usize::from(u16::MAX) {
            self.fault(user_at, "\"..\"", "must have at most 65535 bytes");
        }
        (!user.is_empty()).then(|| Login { user: user.into(), password })
    }

    fn mqtt_tls(&mut self, key: &str, raw: &RawMqttTls) -> MqttTls {
        let server_name = (!raw.server_name.is_empty()).then(|| raw.server_name.clone());
        if server_name.as_deref().is_some_and(|name| ServerName::try_from(name).is_err()) {
            self.fault(
                &format!("{key}.server_name"),
                &quoted(&raw.server_name),
                "must be a host name or address",
            );
        }
        MqttTls {
            ca_file: file(&format!("{key}.ca_file"), &raw.ca_file),
            client: self.certificate(key, &raw.cert_file, &raw.key),
            server_name,
        }
    }

    fn route(&mut self, key: &str, raw: &RawRoute) -> Option<Route> {
        let at = |name: &str| format!("{key}.{name}");
        self.topic_filter(&at("topic_filter"), &raw.topic_filter);
        let kind = raw.decode?;
        let pointers = [
            ("device_pointer", &raw.device_pointer),
            ("time_pointer", &raw.time_pointer),
            ("seq_pointer", &raw.seq_pointer),
        ];
        for (name, value) in pointers {
            if kind != Decode::Json && !value.is_empty() {
                self.fault(&at(name), &quoted(value), "only for decode = \"json\"");
            } else {
                self.pointer(&at(name), value);
            }
        }
        if matches!(kind, Decode::Hfp | Decode::Native) && !raw.device_topic.is_empty() {
            self.fault(
                &at("device_topic"),
                &quoted(&raw.device_topic),
                "only for decode = \"raw\" and \"json\"",
            );
        }
        if kind == Decode::Native && !raw.stream.is_empty() {
            self.fault(
                &at("stream"),
                &quoted(&raw.stream),
                "not for decode = \"native\": each schema has its own",
            );
        }
        if !raw.device_topic.is_empty() {
            self.device_topic(&at("device_topic"), &raw.device_topic);
        }
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut stream = || self.stream(&at("stream"), &raw.stream);
        let decode = match kind {
            Decode::Json => {
                let stream = stream()?;
                let device = match (filled(&raw.device_pointer), filled(&raw.device_topic)) {
                    (Some(pointer), None) => DeviceFrom::Pointer(pointer),
                    (None, Some(topic)) => DeviceFrom::Topic(topic),
                    _ => {
                        let value = quoted(&raw.device_pointer);
                        self.fault(
                            &at("device_pointer"),
                            &value,
                            "exactly one of device_pointer and device_topic must be set",
                        );
                        return None;
                    }
                };
                let (time_pointer, seq_pointer) = (filled(&raw.time_pointer), filled(&raw.seq_pointer));
                RouteDecode::Json { stream, device, time_pointer, seq_pointer }
            }
            Decode::Hfp => RouteDecode::Hfp { stream: stream()? },
            Decode::Raw => {
                let stream = stream()?;
                let device_topic = filled(&raw.device_topic);
                if device_topic.is_none() {
                    self.fault(&at("device_topic"), "\"\"", "must be set for decode = \"raw\"");
                }
                RouteDecode::Raw { stream, device_topic: device_topic? }
            }
            Decode::Native => RouteDecode::Native,
        };
        let default = if kind == Decode::Native { Value::Json } else { Value::Raw };
        let value = raw.value.unwrap_or(default);
        if kind == Decode::Raw && value == Value::Json {
            self.fault(&at("value"), "\"json\"", "must be \"raw\" for decode = \"raw\"");
        }
        Some(Route { topic_filter: raw.topic_filter.clone(), decode, value })
    }

    fn device_topic(&mut self, key: &str, pattern: &str) {
        if let Err(cause) = TopicPattern::new(pattern) {
            self.fault(key, &quoted(pattern), &cause.to_string());
        }
    }

    /// A JSON pointer, if there is one.
    fn pointer(&mut self, key: &str, value: &str) -> Option<String> {
        if !value.is_empty() && !value.starts_with('/') {
            self.fault(key, &quoted(value), "must be a JSON pointer, beginning with /");
        }
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// `streams` says how many partitions a stream has.
    pub(super) fn http(
        &mut self,
        key: &str,
        raw: &RawHttpSource,
        environment: &str,
        streams: &BTreeMap<StreamName, Stream>,
    ) -> Option<HttpSource> {
        let at = |name: &str| format!("{key}.{name}");
        let listen: Option<SocketAddr> = self.parse(&at("listen"), &raw.listen, "host address and port");
        let token_file = file(&at("token_file"), &raw.token_file);
        let tls = self.server_tls(&at("tls"), &raw.tls);
        let asks = token_file.is_some() || tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
        if !asks && listen.is_some_and(|listen| !listen.ip().is_loopback()) {
            let limit = "must be a loopback address, or token_file or tls.client_ca_file must be set: anybody could write";
            self.fault(&at("listen"), &quoted(&raw.listen), limit);
        }
        if raw.body_buffer_bytes < raw.max_body_bytes {
            let limit = format!("at least max_body_bytes = {}", raw.max_body_bytes);
            self.fault(&at("body_buffer_bytes"), &raw.body_buffer_bytes.to_string(), &limit);
        }
        if raw.route.is_empty() {
            self.fault(&at("route"), "[]", "at least one [[source.http.route]]");
        }
        let mut seen = BTreeSet::new();
        let routes = each(&raw.route, &at("route"), |key, route| {
            let checked = self.http_route(&key, route, streams)?;
            if !seen.insert(checked.stream.clone()) {
                let limit = "already the stream of another route of this source";
                self.fault(&format!("{key}.stream"), &quoted(&route.stream), limit);
            }
            Some(checked)
        });
        Some(HttpSource {
            name: raw.name.clone(),
            listen: listen?,
            token_file,
            tls,
            max_connections: size(raw.max_connections.into()),
            max_body_bytes: size(raw.max_body_bytes),
            body_buffer_bytes: size(raw.body_buffer_bytes),
            idle_timeout: Duration::from_millis(raw.idle_timeout_ms),
            body_timeout: Duration::from_millis(raw.body_timeout_ms),
            commit_timeout: Duration::from_millis(raw.commit_timeout_ms),
            environment: environment.into(),
            routes: routes.into_iter().flatten().collect(),
        })
    }

    fn http_route(
        &mut self,
        key: &str,
        raw: &RawHttpRoute,
        streams: &BTreeMap<StreamName, Stream>,
    ) -> Option<HttpRoute> {
        let at = |name: &str| format!("{key}.{name}");
        let [device_pointer, time_pointer, seq_pointer] = [
            ("device_pointer", &raw.device_pointer),
            ("time_pointer", &raw.time_pointer),
            ("seq_pointer", &raw.seq_pointer),
        ]
        .map(|(name, value)| self.pointer(&at(name), value));
        let stream = self.stream(&at("stream"), &raw.stream)?;
        let partitions = streams.get(&stream).map_or(PARTITIONS_DEFAULT, |stream| stream.partitions);
        Some(HttpRoute { stream, partitions, device_pointer, time_pointer, seq_pointer, value: raw.value })
    }

    pub(super) fn serial(&mut self, key: &str, raw: &RawSerialSource) -> SerialSource {
        let at = |name: &str| format!("{key}.{name}");
        let protocol = if raw.protocol == Some(Protocol::Nmea) {
            let device = if raw.device.is_empty() { &raw.name } else { &raw.device };
            let device =
                DeviceId::new(device).map_err(|e| self.fault(&at("device"), &quoted(device), &e.to_string()));
            let stream = self.stream(&at("stream"), &raw.stream);
            let raw_stream = self.stream(&at("raw_stream"), &raw.raw_stream);
            match (stream, raw_stream, device) {
                (Some(stream), Some(raw_stream), Ok(device)) => {
                    SerialProtocol::Nmea { stream, raw_stream, device }
                }
                _ => SerialProtocol::Native, // faults are noted, the value is not used
            }
        } else {
            SerialProtocol::Native
        };
        if protocol == SerialProtocol::Native && raw.flow_control == FlowControl::Software {
            self.fault(
                &at("flow_control"),
                "\"software\"",
                "native frames hold XON and XOFF bytes: \"none\" or \"hardware\"",
            );
        }
        SerialSource {
            name: raw.name.clone(),
            path: self.filled(&at("path"), &raw.path).into(),
            protocol,
            baud: raw.baud,
            parity: raw.parity,
            flow_control: raw.flow_control,
            value: raw.value,
            reopen: self.backoff(
                (&at("reopen_min_ms"), raw.reopen_min_ms),
                (&at("reopen_max_ms"), raw.reopen_max_ms),
            ),
        }
    }
}
