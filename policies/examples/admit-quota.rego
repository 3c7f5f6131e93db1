# A quota for each peer: how many VMs, and how much memory, it may have here at once.
#
# `sojourn peer set PEER --vms N --memory SIZE` does the same for one peer at a time. Write it down
# here where a quota follows from a rule.
#
# Copy it to policies/admit.rego of the state folder.
package sojourn.admit

import rego.v1

import data.sojourn.defaults.admit as usual

# All that is usual holds too: room, country, price, VMs that stay apart.
refuse contains reason if some reason in usual.refuse

# Virtual machines by peer.
vms := {"beta": 5, "gamma": 1}

# ... and of every other peer.
vms_of_others := 2

# Memory of all VMs of one peer together.
memory := 16 * 1073741824

refuse contains reason if {
	input.peer != null
	most := object.get(vms, input.peer, vms_of_others)
	input.taken.vms >= most
	reason := sprintf("your quota here is %d VMs, and all are taken", [most])
}

refuse contains reason if {
	input.peer != null
	input.taken.resources.memory + input.descriptor.resources.memory > memory
	reason := sprintf("your quota here is %d MiB of memory", [memory / 1048576])
}
