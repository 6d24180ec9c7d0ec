"""An HTTP server on a folder for download_test.cmake: range_server.py FOLDER PORTFILE.

/whole/NAME   ignores ranges, as simple servers do
/range/NAME   sends what is asked for
/cut/NAME     sends a third of what is asked for, and hangs up
It appends "PATH RANGE" to FOLDER/requests, writes its port to PORTFILE, and ends after a minute without requests.
"""
import http.server
import os
import re
import sys

folder, port_file = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range", "")
        with open(os.path.join(folder, "requests"), "a") as log:
            log.write(f"{self.path} {asked}\n")
        _, way, name = self.path.split("/", 2)
        try:
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(match.group(1)) if match and way != "whole" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 3] if way == "cut" else rest)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
with open(port_file + ".new", "w") as out:
    out.write(str(server.server_port))
os.rename(port_file + ".new", port_file)
server.timeout = 60
server.handle_timeout = sys.exit
while True:
    server.handle_request()
