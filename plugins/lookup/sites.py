"""Lookup plugin `misrc.remote.sites`: the sites that an inventory folder declares, read by misrc's own strict rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from misrc.declare.node import load_documents
from misrc.job.codec import encode
from misrc.job.errors import BadRequest

DOCUMENTATION = """
name: sites
short_description: The sites that an inventory folder declares
description:
  - Reads the declarations with the same strict rules as C(misrc run). Anything wrong in any of them is an error.
options:
  _terms:
    description: Inventory folders on the controller.
    required: true
"""
EXAMPLES = """
- ansible.builtin.debug:
    msg: "{{ query('misrc.remote.sites', inventory_dir) | map(attribute='id') }}"
"""
RETURN = """
_list:
  description:
    - For each site its id, its key file where one is declared, the document that MInt's node keeps, and the interface.
  type: list
  elements: dict
"""


class LookupModule(LookupBase):
    """What Ansible looks for."""

    def run(self, terms: Any, variables: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        """The sites of all folders, in order of id."""
        found = []
        for term in terms:
            try:
                for site, document in load_documents(Path(str(term))):
                    found.append(
                        {
                            "id": site.id,
                            "identity": site.identity or "",
                            "document": document,
                            "interface": encode(site),
                        }
                    )
            except BadRequest as error:
                raise AnsibleError(str(error)) from None
        return sorted(found, key=lambda site: str(site["id"]))
