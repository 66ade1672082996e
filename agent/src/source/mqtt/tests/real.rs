//! The source against a real Mosquitto.
