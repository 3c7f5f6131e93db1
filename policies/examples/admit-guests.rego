# Only certain guests of peers: by their name, and by how large they are.
#
# Copy it to policies/admit.rego of the state folder.
package sojourn.admit

import rego.v1

import data.sojourn.defaults.admit as usual

# All that is usual holds too: room, country, price, VMs that stay apart.
refuse contains reason if some reason in usual.refuse

# A name is what the guest's owner calls it: this keeps accidents out, and nobody who means it.
names := `^(web|db)(-[0-9]+)?$`

most_cpus := 4

refuse contains "this site takes VMs that are called web or db, with a number or without" if {
	input.peer != null
	not regex.match(names, input.descriptor.name)
}

refuse contains reason if {
	input.peer != null
	input.descriptor.resources.cpus > most_cpus
	reason := sprintf("this site takes VMs with up to %d CPUs", [most_cpus])
}
