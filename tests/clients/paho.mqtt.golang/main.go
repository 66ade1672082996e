// paho.mqtt.golang behind the protocol of tests/harness/client.rs.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"strings"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

func main() {
	host, port, options := os.Args[1], os.Args[2], map[string]string{}
	for _, option := range os.Args[4:] {
		name, value, _ := strings.Cut(option, "=")
		options[name] = value
	}
	var client mqtt.Client
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		switch words[0] {
		case "connect":
			client = connect(host, port, options, words[1:])
		case "publish":
			must(client.Publish(words[3], words[1][0]-'0', words[2] == "1", words[4]))
			fmt.Println("published")
		case "subscribe":
			must(client.Subscribe(words[2], words[1][0]-'0', nil))
			fmt.Println("subscribed")
		case "disconnect":
			client.Disconnect(250)
			fmt.Println("disconnected")
		case "die":
			os.Exit(0)
		default:
			log.Fatalf("not understood: %s", lines.Text())
		}
	}
}

func connect(host, port string, options map[string]string, words []string) mqtt.Client {
	scheme := "tcp"
	config := mqtt.NewClientOptions()
	if ca, given := options["ca"]; given {
		scheme = "ssl"
		pem, err := os.ReadFile(ca)
		if err != nil {
			log.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		config.SetTLSConfig(&tls.Config{RootCAs: roots})
	}
	config.AddBroker(scheme + "://" + host + ":" + port)
	// Without a version it would try 3.1 after a refusal.
	config.SetProtocolVersion(4).SetAutoReconnect(false)
	config.SetClientID(words[0]).SetCleanSession(words[1] != "keep")
	config.SetUsername(options["user"]).SetPassword(options["password"])
	if len(words) > 2 {
		config.SetWill(words[2], words[3], 1, false)
	}
	config.SetDefaultPublishHandler(func(_ mqtt.Client, message mqtt.Message) {
		retained := 0
		if message.Retained() {
			retained = 1
		}
		fmt.Println("message", message.Qos(), retained, message.Topic(), string(message.Payload()))
	})
	client := mqtt.NewClient(config)
	token := client.Connect().(*mqtt.ConnectToken)
	switch token.Wait(); {
	case token.Error() != nil:
		fmt.Println("refused", token.Error())
	case token.SessionPresent():
		fmt.Println("connected 1")
	default:
		fmt.Println("connected 0")
	}
	return client
}

func must(token mqtt.Token) {
	if token.Wait(); token.Error() != nil {
		log.Fatal(token.Error())
	}
}
