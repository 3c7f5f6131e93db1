# What transfers may take of this site's links: partners get three times as much as others where
# both wait for the same link, what only passes through is slow, and a peer behind a line that drops
# UDP is not tried with it. VMs that must leave by a deadline go before all others anyway.
#
# Copy it to policies/share.rego of the state folder.
package sojourn.share

import rego.v1

default carrier := "any"

carrier := "tls" if "no-udp" in input.peering.marks

default rate := 0

# Bytes a second. A VM in a hurry is let through at full speed.
rate := 10000000 if {
	input.role == "relay"
	not input.urgent
}

default weight := 1

weight := 3 if "partner" in input.peering.marks
