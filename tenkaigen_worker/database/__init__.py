"""PostgreSQL: connections, migrations, the queue."""
