"""The device service: front ends that devices call, the state they share, and the exchange of a running job."""
