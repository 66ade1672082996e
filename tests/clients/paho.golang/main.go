// paho.golang behind the protocol of tests/harness/client.rs.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	"github.com/eclipse/paho.golang/paho"
)

func main() {
	address, options := net.JoinHostPort(os.Args[1], os.Args[2]), map[string]string{}
	for _, option := range os.Args[4:] {
		name, value, _ := strings.Cut(option, "=")
		options[name] = value
	}
	ctx := context.Background()
	var client *paho.Client
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		switch words[0] {
		case "connect":
			client = connect(ctx, dial(address, options), options, words[1:])
		case "publish":
			publish := paho.Publish{QoS: words[1][0] - '0', Retain: words[2] == "1", Topic: words[3], Payload: []byte(words[4])}
			_, err := client.Publish(ctx, &publish)
			must(err)
			fmt.Println("published")
		case "subscribe":
			subscription := paho.SubscribeOptions{Topic: words[2], QoS: words[1][0] - '0'}
			_, err := client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{subscription}})
			must(err)
			fmt.Println("subscribed")
		case "disconnect":
			must(client.Disconnect(&paho.Disconnect{}))
			fmt.Println("disconnected")
		case "die":
			os.Exit(0)
		default:
			log.Fatalf("not understood: %s", lines.Text())
		}
	}
}

func dial(address string, options map[string]string) net.Conn {
	ca, given := options["ca"]
	if !given {
		conn, err := net.Dial("tcp", address)
		must(err)
		return conn
	}
	pem, err := os.ReadFile(ca)
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots})
	must(err)
	return conn
}

func connect(ctx context.Context, conn net.Conn, options map[string]string, words []string) *paho.Client {
	client := paho.NewClient(paho.ClientConfig{
		Conn: conn,
		Router: paho.NewSingleHandlerRouter(func(message *paho.Publish) {
			retained := 0
			if message.Retain {
				retained = 1
			}
			fmt.Println("message", message.QoS, retained, message.Topic, string(message.Payload))
		}),
	})
	keep, expiry := words[1] == "keep", uint32(0)
	if keep {
		expiry = 300
	}
	user, password := options["user"], options["password"]
	request := paho.Connect{
		ClientID:     words[0],
		CleanStart:   !keep,
		KeepAlive:    60,
		Properties:   &paho.ConnectProperties{SessionExpiryInterval: &expiry},
		Username:     user,
		UsernameFlag: user != "",
		Password:     []byte(password),
		PasswordFlag: password != "",
	}
	if len(words) > 2 {
		request.WillMessage = &paho.WillMessage{QoS: 1, Topic: words[2], Payload: []byte(words[3])}
	}
	switch answer, err := client.Connect(ctx, &request); {
	case err != nil:
		fmt.Println("refused", err)
	case answer.SessionPresent:
		fmt.Println("connected 1")
	default:
		fmt.Println("connected 0")
	}
	return client
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
