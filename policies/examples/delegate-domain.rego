# Only within this site's own administrative domain: requests go on between sites of the same
# owner, marked by `sojourn peer set PEER --mark own-domain`, and neither in nor out.
#
# Copy it to policies/delegate.rego of the state folder.
package sojourn.delegate

import rego.v1

import data.sojourn.defaults.delegate as usual

# All that is usual holds too: the hops that are left, and VMs that may not be delegated.
refuse contains reason if some reason in usual.refuse

refuse contains "requests from other domains are not passed on" if {
	input.peer != null
	not "own-domain" in input.peering.marks
}

# Own users' VMs stay in the domain too. Whoever asked need not know what lies outside.
refuse contains "no further site is in this domain" if not "own-domain" in input.to_peering.marks
