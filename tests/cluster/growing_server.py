"""A stand-in for a server that holds its model in a process of its own, as Ollama does. It takes more and more memory
when it is asked to grow, or has that process do so, which it starts anew when it has ended. The port is its argument."""

import http.server
import json
import subprocess
import sys

MODEL = "grows"
HOLD = """
import sys
held = [b"x" * 150_000_000]
print("held", flush=True)
while sys.stdin.readline():
    while True:
        held.append(b"x" * 4_000_000)
"""
holds = None


def hold():
    global holds
    if holds is None or holds.poll() is not None:
        holds = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holds.stdout.readline()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def say(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path != "/v1/models":
            return self.send_error(404)
        self.say("application/json", json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked, taken = body["messages"][-1]["content"], []
        hold()
        if "have it grow" in asked:
            holds.stdin.write(b"\n")
            holds.stdin.flush()
            holds.wait()
        while asked == "Please grow":
            taken.append(b"x" * 4_000_000)
        chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "apple"}}]}
        last = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        lines = [f"data: {json.dumps(event)}\n\n" for event in (chunk, last)] + ["data: [DONE]\n\n"]
        self.say("text/event-stream", "".join(lines).encode())


hold()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
