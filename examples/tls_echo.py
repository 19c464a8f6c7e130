"""An echo server that speaks TLS, and takes a renewed certificate without a restart.

A certificate for trying it, which is its own authority:

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext
    subjectAltName=DNS:localhost,IP:127.0.0.1
        -addext keyUsage=digitalSignature,keyCertSign -keyout key.pem -out cert.pem

    python examples/tls_echo.py cert.pem key.pem [--port PORT]
    openssl s_client -connect 127.0.0.1:1337 -CAfile cert.pem -verify_return_error

    kill -HUP PID       read both files again: for new connections; those that are open go on as
    they are
"""

import argparse
import signal
import ssl
import sys

import hydrogen


class Echo(hydrogen.Handler):
    """Knows nothing of TLS: what it gets is decrypted, what it sends will be encrypted."""

    def on_data_received(self, socket, data):
        socket.send(data)

    def on_connection_removed(self, fd, err):
        if isinstance(err, ssl.SSLError):  # a failed handshake, or an end without close_notify
            print(f"TLS: {err}", file=sys.stderr, flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "cert", help="the certificate, and those between it and the authority (PEM)"
    )
    options.add_argument("key", help="its private key (PEM)")
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()

    def context():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.cert, arguments.key)
        return context

    def started(server):
        def reload(number, frame):
            try:
                server.reload_tls(context())
            except (OSError, RuntimeError) as error:
                # a bad file (or the server is stopping): the certificate of before stays
                print(f"not reloaded: {error}", file=sys.stderr, flush=True)
            else:
                print("reloaded", file=sys.stderr, flush=True)

        signal.signal(signal.SIGHUP, reload)
        print("listening on {}:{}".format(*server.address), flush=True)

    hydrogen.begin(Echo(), hydrogen.Config(port=arguments.port, ssl=context()), on_started=started)


if __name__ == "__main__":
    main()
