# Only peers with which there is an agreement on paper: `sojourn peer set PEER --contract NAME`.
#
# Copy it to policies/admit.rego of the state folder.
package sojourn.admit

import rego.v1

import data.sojourn.defaults.admit as usual

# All that is usual holds too: room, country, price, VMs that stay apart.
refuse contains reason if some reason in usual.refuse

# A peer without one has null there, which is a value: `not input.peering.contract` would not see it.
refuse contains "there is no contract with you" if {
	input.peer != null
	input.peering.contract == null
}
