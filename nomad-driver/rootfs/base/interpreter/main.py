"""The code interpreter of a sandbox: runs code in kernels and answers with streams of JSON lines.

It serves on the port that clients of the E2B contract expect and knows no tokens: who may speak to it is decided before a request gets
into the sandbox. The process that kernels are forked from is started before anything else, so that both get ready at once.
"""

import zygote

if __name__ == "__main__":
    channel = zygote.start()
    import server

    server.serve(channel)
