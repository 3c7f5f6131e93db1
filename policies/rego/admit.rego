# Whether to host a VM on one of this site's hosts.
#
# input:  model::decision::Admit
# refuse: every reason against it, written for whoever asked; an empty set admits
package sojourn.admit

import rego.v1

wanted := input.descriptor.resources

restrictions := input.descriptor.restrictions

# How much is free is told to this site's own users only: a peer learns what it may act on.
refuse contains reason if {
	wanted.cpus > input.free.cpus
	input.peer == null
	reason := sprintf("%d CPUs are wanted, %d are free", [wanted.cpus, input.free.cpus])
}

refuse contains reason if {
	wanted.cpus > input.free.cpus
	input.peer != null
	reason := sprintf("%d CPUs are wanted, more than are free", [wanted.cpus])
}

refuse contains reason if {
	wanted.memory > input.free.memory
	input.peer == null
	reason := sprintf("%d MiB of memory are wanted, %d MiB are free", [
		ceil(wanted.memory / 1048576),
		floor(input.free.memory / 1048576),
	])
}

refuse contains reason if {
	wanted.memory > input.free.memory
	input.peer != null
	reason := sprintf("%d MiB of memory are wanted, more than are free", [
		ceil(wanted.memory / 1048576),
	])
}

# A site that does not say where it is counts as being nowhere that was asked for.
refuse contains reason if {
	count(restrictions.countries) > 0
	not input.country in restrictions.countries
	reason := sprintf("the VM may run in %s only", [concat(", ", restrictions.countries)])
}

# These are VMs of whoever asks. What others have here they neither hear of nor stand in the way of.
refuse contains reason if {
	input.group.host > 0
	reason := sprintf("the host has a VM of group %s already, and these must stay apart", [
		restrictions.apart,
	])
}

# Null means any price. It must be asked for: null compares as less than every number.
refuse contains reason if {
	restrictions.max_price_milli != null
	input.price_milli > restrictions.max_price_milli
	reason := sprintf("the price is %d, the VM may cost %d at most (thousandths per hour)", [
		input.price_milli,
		restrictions.max_price_milli,
	])
}
