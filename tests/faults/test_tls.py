"""kill -9 of a node and a server that speak TLS with each other."""

import os
import shutil
import unittest

from pigeonpost.auth.tokens import Tokens
from tests.faults.house import House, kill_at_random, trial
from tests.support import long, rounds

KILLS = rounds("PIGEONPOST_TEST_TLS_KILLS", 3, 100)


class TlsHouse(House):
    """Both programs with a token and TLS. The oracle is on the node's machine, and uses plain TCP."""

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        data = str(self.data / "server")
        os.makedirs(data)
        token = Tokens(data).make("n")
        settings = self.folder / "server.toml"
        settings.write_text('[[node]]\nname = "n"\ntls = true\n')
        self.server.command += ["--config", str(settings)]
        self.node.environment |= {"PIGEONPOST_LINK_TLS": "true", "PIGEONPOST_NODE_TOKEN": token}
        self.opening = b'AUTH {"token": "%s"}\n' % token.encode()


@unittest.skipUnless(shutil.which("openssl"), "there is no program openssl here")
class Kills(unittest.TestCase):
    @long
    def test_killed_again_and_again_with_tls(self):
        with trial(f"{KILLS} times killed, with TLS", kind=TlsHouse, every_s=0.01) as (house, chance):
            kill_at_random(house, KILLS, chance)
            self.assertIn("the link uses TLS", house.node.log.read_text())


if __name__ == "__main__":
    unittest.main()
