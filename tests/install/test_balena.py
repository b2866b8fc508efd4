"""docker-compose.yml and balena.yml, read by balena's own packages from npm.

@balena/compose-parser contains compose-go as a program, which it downloads from a place that tests may not use.
Debian's docker-compose with the same compose-go replaces it.
"""

import json
import os
import shutil
import subprocess
import tempfile
import unittest

from tests.install import need_install
from tests.install.containers import docker_compose
from tests.support import ROOT, temp_folder

_NPM_S = 300.0
_PACKAGES = ("@balena/compose-parser@0.2.6", "@balena/contrato@0.13.0", "js-yaml@4.1.0")
_PARSER = "node_modules/@balena/compose-parser/bin/balena-compose-parser"
# balena's names of the device types that Debian's image supports: all generations of Raspberry Pi.
_MACHINES = ["raspberry-pi", "raspberry-pi2", "raspberrypi0-2w-64", "raspberrypi3", "raspberrypi3-64",
             "raspberrypi4-64", "raspberrypi400-64", "raspberrypi5"]  # fmt: skip
FOLDER = ""


def setUpModule():
    global FOLDER
    need_install(npm="npm", node="nodejs", debootstrap="debootstrap")
    FOLDER = tempfile.mkdtemp(prefix="pigeonpost-balena-")
    unittest.addModuleCleanup(shutil.rmtree, FOLDER, ignore_errors=True)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", FOLDER, *_PACKAGES]
    subprocess.run(install, check=True, capture_output=True, timeout=_NPM_S)
    path = os.path.join(FOLDER, _PARSER)
    os.makedirs(os.path.dirname(path))
    with open(path, "w", encoding="ascii") as file:
        file.write(f'#!/bin/sh\nexec {docker_compose()} --log-level error "$1" "$2" -p "$3" config --format json\n')
    os.chmod(path, 0o755)


def read_by_balena(compose, contract):
    """Return the two files as balena's packages read them. Raises AssertionError with their message."""
    command = [
        "node",
        os.path.join(ROOT, "tests", "install", "balena_check.js"),
        compose,
        contract,
        *_MACHINES,
        "intel-nuc",
    ]
    environment = {**os.environ, "NODE_PATH": os.path.join(FOLDER, "node_modules")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise AssertionError(result.stderr)
    return json.loads(result.stdout)


class Balena(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        compose, contract = (os.path.join(ROOT, name) for name in ("docker-compose.yml", "balena.yml"))
        cls.found = read_by_balena(compose, contract)

    def test_both_services_are_accepted_with_their_devices(self):
        services = self.found["composition"]["services"]
        self.assertEqual(sorted(services), ["node", "server"])
        for name, service in services.items():
            with self.subTest(name):
                self.assertEqual(service["network_mode"], "host")
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["environment"]["TZ"], "")  # a variable without a value is passed empty
                self.assertIn(f"{name}-data:/data", service["volumes"])
                self.assertNotIn("privileged", service)
        self.assertEqual(services["node"]["devices"], ["/dev/spidev0.0:/dev/spidev0.0:rwm"])

    def test_contract_names_every_machine_that_the_image_runs_on(self):
        self.assertEqual(self.found["runsOn"], _MACHINES)
        self.assertEqual(self.found["contract"]["type"], "sw.application")
        self.assertIn(self.found["contract"]["data"]["defaultDeviceType"], _MACHINES)

    def test_contract_leaves_i2c_on(self):
        """A value of dtparam would replace balenaOS' own value, which enables I2C, SPI and sound."""
        variables = self.found["contract"]["data"].get("applicationConfigVariables", [])
        self.assertNotIn("BALENA_HOST_CONFIG_dtparam", json.dumps(variables))

    def test_unsupported_keys_are_refused(self):
        """A negative control: otherwise the tests above would prove nothing."""
        for line in ("logging: {driver: none}", 'volumes: ["/etc:/etc"]'):
            folder = temp_folder(self)
            path = os.path.join(folder, "docker-compose.yml")
            with open(path, "w", encoding="ascii") as file:
                file.write(f"services:\n  node:\n    build: .\n    {line}\n")
            with self.assertRaisesRegex(AssertionError, "not allowed|cannot be"):
                read_by_balena(path, os.path.join(ROOT, "balena.yml"))


if __name__ == "__main__":
    unittest.main()
