"""The service file for Avahi matches the document type definition of Debian's avahi-daemon."""

import os
import re
import unittest
from xml.etree import ElementTree

from tests.programs import need_programs
from tests.support import ROOT

SERVICE = os.path.join(ROOT, "deploy", "avahi", "pigeonpost.service")
DTD = "/usr/share/avahi/avahi-service.dtd"


def setUpModule():
    need_programs("avahi-daemon")


def content_models():
    """Return a regular expression for the names of the children of each element with children, from the DTD."""
    with open(DTD, encoding="utf-8") as file:
        found = re.findall(r"<!ELEMENT ([a-z-]+) \(([^#)]+)\)>", file.read())
    return {name: re.sub(r"([a-z-]+)([*+?]?)", r"(?:\1 )\2", model).replace(",", "") for name, model in found}


class ServiceFile(unittest.TestCase):
    def test_elements_are_those_of_the_document_type(self):
        models = content_models()
        self.assertEqual(set(models), {"service-group", "service"})
        tree = ElementTree.parse(SERVICE).getroot()
        self.assertEqual(tree.tag, "service-group")
        for element in tree.iter():
            children = "".join(f"{child.tag} " for child in element)
            self.assertRegex(children, f"^{models.get(element.tag, '')}$")


if __name__ == "__main__":
    unittest.main()
